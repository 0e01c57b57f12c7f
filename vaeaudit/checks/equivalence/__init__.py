"""The equivalence check: whether another form of a model gives the same."""
