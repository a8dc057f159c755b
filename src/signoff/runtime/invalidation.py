"""Refresh: the copies that this process keeps are dropped when what they are of changes anywhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog

from signoff.store import Store, Topic

NET_SECONDS = 0.5
log = structlog.get_logger()


class Invalidation:
    """Forgets a copy at once when there is news of its topic, and within half a second when the news was lost."""

    def __init__(self, store: Store, forget: Mapping[str, Callable[[], None]]) -> None:
        self._store = store
        self._forget = forget
        self._seen: dict[str, int] = {}
        self._look = asyncio.Event()

    def on_change(self, topic: Topic, name: str) -> None:
        """News from the store."""
        if topic in self._forget:
            self._forget[topic]()
        if topic == "any":
            self._look.set()

    async def run(self) -> None:
        """Compares versions, for ever."""
        while True:
            await self._compare()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NET_SECONDS):
                    await self._look.wait()
            self._look.clear()

    async def _compare(self) -> None:
        try:
            versions = await self._store.versions()
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not look for changes", error=repr(error))
            return
        for topic, version in versions.items():
            if self._seen.get(topic) != version and topic in self._forget:
                self._forget[topic]()
        self._seen = versions
