"""The cache as verbs use it: copies at hand, lookups and writes in groups. One that is away is an empty one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
import structlog

from signoff.cache import Cache, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.errors import BadRequest, Overloaded
from signoff.infra.lru import BoundedLRUCache
from signoff.runtime.background import Background

NEAR_ENTRIES = 10_000
NEAR_BYTES = 32 * 1024 * 1024
# What a copy takes beside its answer, about.
COPY_BYTES = 800
WAITING_BYTES = 64 * 1024 * 1024
WAITING_ENTRIES = 10_000
KEYS_AT_ONCE = 500
ENTRIES_AT_ONCE = 200
# Nobody waits longer than that for a cache; then it is away, and looked after once a second.
LOOK_SECONDS = 0.25
AWAY_SECONDS = 1.0
KEPT_SECONDS = 1.0
log = structlog.get_logger()


class LocalCopy(msgspec.Struct, frozen=True):
    """An entry at hand: when it was signed off and when it ends, on the loop's clock."""

    entry: CacheEntry
    born_at: float
    ends_at: float


class ResponseCache:
    """The answers that can be given again. Without a cache there are none."""

    def __init__(self, cache: Cache | None, background: Background, *, ttl_seconds: float = 0) -> None:
        self._cache = cache
        self._background = background
        self._ttl_seconds = ttl_seconds
        self._local = BoundedLRUCache[str, LocalCopy](max_entries=NEAR_ENTRIES, max_bytes=NEAR_BYTES, size_of=_size_of)
        self._asked: dict[str, list[asyncio.Future[LocalCopy | None]]] = {}
        self._waiting: dict[str, CacheEntry] = {}
        self._waiting_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._generation = 0
        self._away_until: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is kept at all."""
        return self._cache is not None

    @property
    def is_shared(self) -> bool:
        """Whether all processes keep the same."""
        return self._cache is None or self._cache.is_shared

    async def start(self) -> None:
        """Opens the cache."""
        if self._cache is not None:
            await self._cache.start()

    async def lookup(self, key: str, max_age_seconds: float | None = None) -> CacheEntry | None:
        """The entry under `key`, unless it is older than that."""
        now = _now()
        copy = self._local.get(key)
        if copy is None or copy.ends_at <= now:
            copy = await self._look_up(key)
        if copy is None or (max_age_seconds is not None and _now() - copy.born_at >= max_age_seconds):
            return None
        return copy.entry

    def store(self, entry: CacheEntry) -> None:
        """Keeps an answer: here at once, for all others soon. Where too much waits already it is left out."""
        if self._cache is None:
            return
        now = _now()
        self._local[entry.key] = LocalCopy(entry, now, now + self._ttl_seconds)
        if len(self._waiting) >= WAITING_ENTRIES or self._waiting_bytes + len(entry.answer) > WAITING_BYTES:
            return
        self._drop_waiting(entry.key)
        self._waiting[entry.key] = entry
        self._waiting_bytes += len(entry.answer)
        if self._writing is None or self._writing.done():
            self._writing = self._background.spawn(self._write(self._cache))

    async def until_stored(self) -> None:
        """Returns as soon as what was kept is there for all processes, after a second at the latest."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing], timeout=KEPT_SECONDS)

    async def delete(self, which: CacheFilter) -> int:
        """Forgets those; how many. Raises Overloaded when the cache is away."""
        if self._cache is None:
            return 0
        self._generation += 1
        self._local.drop_where(lambda copy: matches_filter(copy.entry, which))
        for entry in [entry for entry in self._waiting.values() if matches_filter(entry, which)]:
            self._drop_waiting(entry.key)
        await self.until_stored()  # what is on its way there would come after it
        try:
            return await self._cache.delete(which)
        except BadRequest:
            raise
        except Exception as error:
            self._say(error)
            raise Overloaded("The cache is away: nothing was deleted there.") from error

    async def size(self, which: CacheFilter) -> CacheSize:
        """How much is kept of those. Raises Overloaded when the cache is away."""
        if self._cache is None:
            return CacheSize()
        await self.until_stored()
        try:
            return await self._cache.size(which)
        except BadRequest:
            raise
        except Exception as error:
            self._say(error)
            raise Overloaded("The cache is away.") from error

    def invalidate(self) -> None:
        """Somebody has deleted something: the copies are out of date."""
        self._generation += 1
        self._local.clear()
        if self._cache is not None:
            self._cache.on_remote_delete()

    async def close(self) -> None:
        """Closes the cache."""
        if self._cache is not None:
            await self._cache.close()

    async def _look_up(self, key: str) -> LocalCopy | None:
        """What the cache has, with whatever else is looked up at this moment; None while it is away."""
        if self._cache is None:
            return None
        is_away = self._away_until is not None
        if is_away and (_now() < (self._away_until or 0) or self._is_reading):
            return None
        found: asyncio.Future[LocalCopy | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(found)
        if not self._is_reading:
            self._reading = self._background.spawn(self._read(self._cache))
        return None if is_away else await found  # nobody waits to learn whether it is back

    @property
    def _is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def _read(self, cache: Cache) -> None:
        """Looks up all that is asked for, a group at a time: the next one is what came meanwhile."""
        try:
            while self._asked:
                keys = list(self._asked)[:KEYS_AT_ONCE]
                await self._read_some(cache, {key: self._asked.pop(key) for key in keys})
        finally:  # when it was stopped, nobody waits for the rest
            for waiting in self._asked.values():
                _resolve(waiting, None)

    async def _read_some(self, cache: Cache, asked: Mapping[str, list[asyncio.Future[LocalCopy | None]]]) -> None:
        generation, copies = self._generation, dict[str, LocalCopy]()
        timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._give_up, asked)
        try:
            found = await cache.lookup(list(asked))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is a miss
            self._say(error)
        else:
            self._say(None)
            if generation == self._generation:  # else it may have been deleted meanwhile
                copies = self._copied(found)
        finally:
            timer.cancel()
            for key, waiting in asked.items():
                _resolve(waiting, copies.get(key))

    def _copied(self, found: Mapping[str, CacheHit]) -> dict[str, LocalCopy]:
        now = _now()
        copies = {
            key: LocalCopy(one.entry, now - one.age_seconds, now + one.left_seconds) for key, one in found.items()
        }
        for key, copy in copies.items():
            self._local[key] = copy
        return copies

    def _give_up(self, asked: Mapping[str, list[asyncio.Future[LocalCopy | None]]]) -> None:
        """It takes too long: for those who wait there is nothing, and nobody waits for it until it answers."""
        self._say(TimeoutError(f"no answer within {LOOK_SECONDS} s"))
        for waiting in (*asked.values(), *self._asked.values()):
            _resolve(waiting, None)

    async def _write(self, cache: Cache) -> None:
        while self._waiting:
            entries = list(self._waiting.values())[:ENTRIES_AT_ONCE]
            for entry in entries:
                self._drop_waiting(entry.key)
            try:
                await cache.store(entries)
            except Exception as error:  # noqa: BLE001 -- a cache may forget
                self._say(error)

    def _drop_waiting(self, key: str) -> None:
        entry = self._waiting.pop(key, None)
        if entry is not None:
            self._waiting_bytes -= len(entry.answer)

    def _say(self, error: Exception | None) -> None:
        """Tells of a change, once."""
        if error is not None and self._away_until is None:
            log.warning("the cache is away; models are asked instead", error=repr(error))
        if error is None and self._away_until is not None:
            log.info("the cache is back")
        self._away_until = None if error is None else _now() + AWAY_SECONDS


def _resolve(waiting: list[asyncio.Future[LocalCopy | None]], copy: LocalCopy | None) -> None:
    for found in waiting:
        if not found.done():
            found.set_result(copy)


def _size_of(copy: LocalCopy) -> int:
    return len(copy.entry.answer) + COPY_BYTES


def _now() -> float:
    return asyncio.get_running_loop().time()
