"""What an audit is asked to do, and who said it."""
