"""Training of the embedded family, from drawings to released weights."""
