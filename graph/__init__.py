"""Workflows as data: reading, checking and converting them, without ComfyUI."""
