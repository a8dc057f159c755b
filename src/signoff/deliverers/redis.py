"""Results in Redis: each is stored under its key for some time, and published on the channel of the same name."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from redis.exceptions import RedisError

from signoff.core.delivery import OutgoingMessage
from signoff.core.retry import Backoff, wait_seconds
from signoff.infra.redis import make_client

BACKOFF = Backoff(first_seconds=0.2, ceiling_seconds=2)
ANSWER_SECONDS = 5.0
READY_SECONDS = 2.0
log = structlog.get_logger()


class RedisDeliverer:
    """A writer of results to Redis; see `deliverer.Deliverer`.

    `send` waits while Redis is unavailable. Few messages are held in memory then; all others wait in the store.
    """

    def __init__(self, url: str, *, ttl_seconds: int, random_float: Callable[[], float]) -> None:
        self._redis = make_client(url, answer_seconds=ANSWER_SECONDS)
        self._ttl_seconds = ttl_seconds
        self._random_float = random_float
        self._is_unavailable = False

    async def start(self) -> None:
        """See `deliverer.Deliverer`. The client connects with the first message."""

    async def send(self, message: OutgoingMessage) -> None:
        """See `deliverer.Deliverer`."""
        attempt = 0
        while not await self._try_write(message):
            attempt += 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    async def withdraw(self, addresses: Sequence[str]) -> None:
        """See `deliverer.Deliverer`."""
        if addresses:
            await self._redis.delete(*addresses)

    async def is_available(self) -> bool:
        """See `deliverer.Deliverer`."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await self._redis.ping())
        except (RedisError, OSError):
            return False

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        await self._redis.aclose()

    async def _try_write(self, message: OutgoingMessage) -> bool:
        """Store and publish the message in one transaction, and return True if that succeeded.

        A subscriber that gets the message also finds the key, and one that reads the key late misses nothing.
        """
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.set(message.address, message.body, ex=self._ttl_seconds)
                pipeline.publish(message.address, message.body)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self._report(error)
            return False
        self._report(None)
        return True

    def _report(self, error: Exception | None) -> None:
        """Log that Redis has become unavailable or available, once for each change."""
        if error is not None and not self._is_unavailable:
            log.warning("redis_delivery_unavailable", error=repr(error))
        if error is None and self._is_unavailable:
            log.info("redis_delivery_available")
        self._is_unavailable = error is not None


async def describe_redis(url: str) -> str:
    """Return the name and version of the server at `url`. Raises ConnectionError with a message for operators."""
    redis = make_client(url, answer_seconds=ANSWER_SECONDS)
    try:
        info = await redis.info("server")
    except (RedisError, OSError) as error:
        reason = str(error).rstrip(".")
        raise ConnectionError(f"Redis cannot be used: {reason}. Check `redis_url`.") from error
    finally:
        await redis.aclose()
    return f"Redis {info['redis_version']}"
