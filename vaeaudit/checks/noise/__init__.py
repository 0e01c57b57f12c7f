"""The noise check: how likelihood falls where the encoder sees noisy inputs."""
