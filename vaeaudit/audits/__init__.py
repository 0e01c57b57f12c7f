"""Each check from settings to what it adds to a report."""
