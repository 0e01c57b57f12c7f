"""The attack check: how little must change for another latent code or another reconstruction."""
