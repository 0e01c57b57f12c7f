"""The mig check: the mutual information gap between units and factors."""
