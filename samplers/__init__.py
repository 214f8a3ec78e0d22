"""Searches: contracts, processes, methods, runs and what is kept of them. Knows neither ComfyUI nor any model."""
