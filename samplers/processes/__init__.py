"""What a search moves: the kernel, SDEs, stock samplers, noise, diffusion and flow models."""
