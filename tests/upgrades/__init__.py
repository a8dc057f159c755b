"""Upgrades: the code of the last release and this one on one database, and restarts that fail no request."""
