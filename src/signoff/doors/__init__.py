"""Doors: wire formats to nouns and back, nothing else."""
