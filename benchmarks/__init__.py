"""Measurements of speed and quality; run by hand, never as tests."""
