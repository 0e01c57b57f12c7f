"""The checks, a folder each, and what they share."""
