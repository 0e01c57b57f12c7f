"""Audits: the checks in order, kept for resume, judged and written down."""
