"""Keepers of the store's promise: one schema and one set of statements, on SQLite and on PostgreSQL."""
