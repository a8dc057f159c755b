"""Results in Redis: written under their key for a while, and announced on the channel of the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from signoff.core.delivery import OutgoingMessage
from signoff.core.retry import Backoff, wait_seconds
from signoff.infra.redis import make_client

BACKOFF = Backoff(first_seconds=0.2, ceiling_seconds=2)
ANSWER_SECONDS = 5.0
log = structlog.get_logger()


class RedisDeliverer:
    """See `deliverer.Deliverer`. Waits while Redis is away: it holds little meanwhile, and the store the rest."""

    def __init__(self, url: str, *, ttl_seconds: int, random_float: Callable[[], float]) -> None:
        self._redis = make_client(url, answer_seconds=ANSWER_SECONDS)
        self._ttl_seconds = ttl_seconds
        self._random_float = random_float
        self._is_away = False

    async def start(self) -> None:
        """See `deliverer.Deliverer`. Nothing is needed before the first message."""

    async def send(self, message: OutgoingMessage) -> None:
        """See `deliverer.Deliverer`."""
        attempt = 0
        while not await self._written(message):
            attempt += 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        await self._redis.aclose()

    async def _written(self, message: OutgoingMessage) -> bool:
        """Whether it is there now. Whoever hears of it finds it, and whoever looks again misses nothing."""
        try:
            async with self._redis.pipeline(transaction=True) as both:
                both.set(message.address, message.body, ex=self._ttl_seconds)
                both.publish(message.address, message.body)
                await both.execute()
        except (RedisError, OSError) as error:
            self._say(error)
            return False
        self._say(None)
        return True

    def _say(self, error: Exception | None) -> None:
        """Tells of a change, once."""
        if error is not None and not self._is_away:
            log.warning("Redis takes no results; they wait in the store", error=repr(error))
        if error is None and self._is_away:
            log.info("Redis takes results again")
        self._is_away = error is not None


async def describe_redis(url: str) -> str:
    """What is found at `url`, in words. Raises ConnectionError with what to do."""
    redis = make_client(url, answer_seconds=ANSWER_SECONDS)
    try:
        told = await redis.info("server")
    except (RedisError, OSError) as error:
        raise ConnectionError(f"Redis cannot be used: {error}. Is the address right, and the password?") from error
    finally:
        await redis.aclose()
    return f"Redis {told['redis_version']}"
