"""Judges of clips: pictures' verifiers on chosen frames, and measures of motion without weights."""
