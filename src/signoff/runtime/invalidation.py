"""Invalidation of this process's caches when any process changes the data behind them."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

import structlog

from signoff.store import Store, Topic

POLL_SECONDS = 0.5
MAX_AGE_SECONDS = 5.0
log = structlog.get_logger()


class Invalidation:
    """Service that calls `invalidate[topic]` after each change of a topic.

    If a notification is lost, it does so within POLL_SECONDS. It also calls the functions of the topics in `expiring`
    every MAX_AGE_SECONDS, because an operator may change rows by hand; but not while the store is unavailable, so that
    the cached copies serve until it is back.
    """

    def __init__(
        self, store: Store, invalidate: Mapping[str, Callable[[], None]], *, expiring: Collection[str] = ()
    ) -> None:
        self._store = store
        self._invalidate = invalidate
        self._expiring = expiring
        self._expire_at = 0.0
        self._versions: dict[str, int] = {}
        self._changed = asyncio.Event()

    def on_change(self, topic: Topic, name: str) -> None:
        """Handle a notification from the store."""
        if topic in self._invalidate:
            self._invalidate[topic]()
        if topic == "any":
            self._changed.set()

    async def run(self) -> None:
        """Compare the versions of all topics, again and again. Never returns."""
        while True:
            await self._compare()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()
            self._changed.clear()

    async def _compare(self) -> None:
        try:
            versions = await self._store.versions()
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next poll retries
            log.warning("cache_version_check_failed", error=repr(error))
            return
        for topic, version in versions.items():
            if self._versions.get(topic) != version and topic in self._invalidate:
                self._invalidate[topic]()
        self._versions = versions
        self._expire()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._expire_at:
            self._expire_at = now + MAX_AGE_SECONDS
            for topic in self._expiring:
                self._invalidate[topic]()
