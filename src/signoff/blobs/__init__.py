"""Adapters of the blob store."""
