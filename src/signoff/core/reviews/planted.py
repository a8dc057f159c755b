"""Planted items: answers that are known to be wrong, mixed into the desk to measure what reviewers catch."""

import msgspec


class PlantedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A request with an answer that is known to be wrong."""

    id: int = 0
    """Number of the item; the store sets it."""
    policy: str
    """Name of the policy in whose reviews it is mixed."""
    path: str
    """Endpoint of the request."""
    body: bytes
    """Request, as JSON."""
    response: bytes
    """Wrong answer, as JSON."""


class CatchCount(msgspec.Struct, frozen=True, kw_only=True):
    """Planted items that a reviewer has judged."""

    reviewer: str
    """Email of the reviewer."""
    judged: int
    """Number of planted items with a verdict."""
    caught: int
    """Number of them that were rejected, sent back or corrected."""
