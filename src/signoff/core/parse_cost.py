"""Weight: which JSON is read whole while everybody else waits."""

from __future__ import annotations

LARGEST_BYTES = 1024 * 1024
MOST_LISTS = 20_000


def is_cheap_to_parse(body: bytes) -> bool:
    """Whether `body` is read in a few milliseconds: it is not large, nor are there many lists and objects in it."""
    return len(body) <= LARGEST_BYTES and body.count(b"[") + body.count(b"{") <= MOST_LISTS
