"""Judgement: thresholds, comparison with a baseline, proposals of both."""
