"""Plug-ins for pytest: servers for tests, and the tiers of tests."""
