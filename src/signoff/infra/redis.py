"""Redis client with the options that all users of Redis share."""

from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def make_client(url: str, *, answer_seconds: float) -> Any:
    """Return a client that connects on first use, waits `answer_seconds` for each answer, and never retries."""
    return cast("Any", Redis).from_url(  # its own types are partial
        url,
        socket_timeout=answer_seconds,
        socket_connect_timeout=answer_seconds,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 0),
    )
