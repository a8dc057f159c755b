"""Loses nothing, as a program with figures: real processes, a nemesis, and a checker of what callers were told."""
