"""Contract tests: one suite per interface, run against every adapter of it."""
