"""Domain types and pure rules: frozen values, no I/O, no clock, no randomness."""
