"""Numerical optimisation on batches of independent problems: pure tensors, no VAE."""
