"""Processes: the composition root, the supervisor, and the background services that it starts."""
