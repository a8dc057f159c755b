"""A client of Redis, for whoever keeps something there."""

from __future__ import annotations

from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def make_client(url: str, *, answer_seconds: float) -> Any:
    """A client that connects when it is used, waits no longer for an answer, and tries nothing again by itself."""
    return cast("Any", Redis).from_url(  # its own types are partial
        url,
        socket_timeout=answer_seconds,
        socket_connect_timeout=answer_seconds,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 0),
    )
