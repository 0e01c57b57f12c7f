"""The command line: parses, calls, renders, exits. It computes nothing."""
