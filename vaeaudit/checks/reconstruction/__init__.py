"""The reconstruction check: how like their inputs the model's reconstructions are."""
