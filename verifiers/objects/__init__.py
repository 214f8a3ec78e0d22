"""Detectors under GenEval's rules."""
