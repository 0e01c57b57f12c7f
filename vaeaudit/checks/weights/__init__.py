"""The weights check: norms of the weights as stored."""
