"""A deterministic simulation of the durable core: the real operations, workers and dispatchers in a seeded world.

Read in this order: `loop` (time and chance), `tables` and `store` (the fake store), `network` (connections between
processes and the store), `process` (one Signoff process), `outside` (models and receivers), `users`, `nemesis` (fault
injection), `checker` (the laws), `run` (one run).
"""
