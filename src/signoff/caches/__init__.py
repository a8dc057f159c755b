"""Adapters of the response cache."""
