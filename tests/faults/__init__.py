"""Fault injection on real processes: a nemesis causes faults, and a checker compares responses with the database."""
