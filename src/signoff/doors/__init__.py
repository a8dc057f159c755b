"""Doors: entry points over HTTP and topics, which translate wire formats and decide nothing."""
