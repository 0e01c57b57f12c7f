"""The report: its model, its tables, its figures, its formats."""
