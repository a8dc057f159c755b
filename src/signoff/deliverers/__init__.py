"""Delivery adapters, one for each kind of delivery."""
