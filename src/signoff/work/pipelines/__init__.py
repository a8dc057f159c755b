"""Prompts, functions and pipelines: saved versions, runs, and the history of runs."""
