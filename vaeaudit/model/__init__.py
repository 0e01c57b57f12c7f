"""The model: a VAE's parts as tensors and distributions, and how checkpoints and adapters become one."""
