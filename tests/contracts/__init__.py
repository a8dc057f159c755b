"""What keepers of a promise keep: one suite a promise, run on every keeper."""
