"""Adapters that come with vaeaudit, one module per family of models."""
