"""Signoff: one server in front of every AI model; an answer leaves only when it is signed off."""

__version__ = "0.2.0"
