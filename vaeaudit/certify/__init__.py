"""Bounds that hold for every input of a ball: what certificates are made of."""
