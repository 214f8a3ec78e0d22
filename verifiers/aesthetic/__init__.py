"""Judges that look at the picture alone."""
