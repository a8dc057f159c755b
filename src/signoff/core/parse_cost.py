"""Parse cost: bounds for JSON that is decoded whole on the event loop, which blocks all other requests."""

MAX_BYTES = 1024 * 1024
MAX_CONTAINERS = 20_000


def is_cheap_to_parse(body: bytes) -> bool:
    """Return True if `body` decodes in a few milliseconds: it is small, and has few lists and objects."""
    return len(body) <= MAX_BYTES and body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS
