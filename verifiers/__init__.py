"""Judges: images + prompt -> one number per image."""
