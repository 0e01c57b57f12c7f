"""Adversarial attacks on VAEs."""
