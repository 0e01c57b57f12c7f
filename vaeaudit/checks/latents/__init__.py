"""The latents check: what each unit carries, and how the ELBO divides."""
