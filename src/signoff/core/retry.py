"""When to ask again: exponential backoff with full jitter under a ceiling.

Source: Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of the waits, in seconds."""

    first_seconds: float = 0.5
    ceiling_seconds: float = 30


def wait_seconds(
    backoff: Backoff, attempt: int, random_float: float, retry_after_seconds: float | None = None
) -> float:
    """How long to wait after failed attempt number `attempt` (from 1).

    `dice` is a random number in [0, 1), handed in. A server's own `Retry-After` is a floor.
    """
    ceiling = min(backoff.ceiling_seconds, backoff.first_seconds * 2.0 ** min(attempt - 1, 32))
    return max(random_float * ceiling, retry_after_seconds or 0)


def scheduled_seconds(waits: Sequence[float], attempt: int, random_float: float) -> float | None:
    """How long to wait after failed attempt number `attempt` (from 1): what `waits` says, and up to a tenth more.

    None when the waits are used up. `dice` is a random number in [0, 1).
    """
    return waits[attempt - 1] * (1 + random_float / 10) if attempt <= len(waits) else None
