"""What is audited: a model on its data, and whether it is what it claims to be."""
