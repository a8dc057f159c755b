"""A deterministic simulation of the durable core: the real verbs, workers and senders in a world that a seed decides.

Read in this order: `loop` (time and chance), `tables` and `store` (the fake store), `network` (what lies between),
`process` (one Signoff), `outside` (models and receivers), `users`, `nemesis`, `checker` (the laws), `run` (one run).
"""
