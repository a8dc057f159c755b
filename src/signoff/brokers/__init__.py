"""Keepers of the broker's promise."""
