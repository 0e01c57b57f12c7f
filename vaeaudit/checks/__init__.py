"""One module per question that an audit asks."""
