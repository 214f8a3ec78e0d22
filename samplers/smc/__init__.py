"""Sequential Monte Carlo: weights, resampling, tempering, potentials, populations."""
