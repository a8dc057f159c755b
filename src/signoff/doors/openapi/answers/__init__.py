"""Types of the answers of the routes, for the OpenAPI document alone: handlers build these objects themselves.

A test compares every answer of the table of routes with its type. Times are texts in RFC 3339, UTC, and costs are
dollars as decimal text.
"""
