"""Infinity: bitwise next-scale image generation (Han et al. 2024, arXiv 2412.04431), in plain PyTorch."""
