"""Estimates with their confidence, paired differences, keyed random draws."""
