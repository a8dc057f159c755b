"""The cache in Redis: an entry a key, with a time to live, and an index beside them that keeps the bounds.

All keys have one hash tag, so that they are on one node of a cluster, and every change of several is one script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from signoff.cache import CacheBounds, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.infra.redis import make_client

ANSWER_SECONDS = 1.0
PAGE = 500
MS = 1000


class EntryLabel(msgspec.Struct, frozen=True, array_like=True):
    """What the index knows of an entry."""

    user_id: int
    model: str
    target: str
    size_bytes: int


class RedisCache:
    """See `cache.Cache`. All processes with this address and prefix have it together.

    It answers within a second, or raises what is wrong; it tries nothing again by itself.
    """

    is_shared = True

    def __init__(self, url: str, *, prefix: str, bounds: CacheBounds) -> None:
        self._redis = make_client(url, answer_seconds=ANSWER_SECONDS)
        self._begin = f"{{{prefix}:cache}}:"
        self._index, self._labels, self._total = (f"{self._begin}{name}" for name in ("index", "labels", "bytes"))
        self._bounds = bounds
        self._keep = self._redis.register_script(_KEEP)
        self._delete = self._redis.register_script(_DELETE)

    async def start(self) -> None:
        """See `cache.Cache`. It connects when it is used."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        async with self._redis.pipeline(transaction=False) as asked:
            for key in keys:
                asked.get(self._begin + key).pttl(self._begin + key)
            told = await asked.execute()
        pairs = zip(keys, told[::2], told[1::2], strict=True)
        return {key: self._found(value, left_ms) for key, value, left_ms in pairs if value is not None and left_ms > 0}

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        bounds = self._bounds
        wanted = [entry for entry in entries if len(entry.answer) <= bounds.max_bytes]
        limits = [round(bounds.ttl_seconds * MS), bounds.max_entries, bounds.max_bytes]
        async with self._redis.pipeline(transaction=False) as asked:
            for entry in wanted:
                label = EntryLabel(entry.user_id, entry.model, entry.target, len(entry.answer))
                values = [entry.key, _encode(entry), msgspec.json.encode(label), len(entry.answer), *limits]
                await self._keep(keys=self._keys, args=[self._begin, *values], client=asked)
            await asked.execute()

    async def delete(self, which: CacheFilter) -> int:
        """See `cache.Cache`."""
        gone = [key for key, _ in await self._those(which)]
        for start in range(0, len(gone), PAGE):
            await self._delete(keys=self._keys, args=[self._begin, *gone[start : start + PAGE]])
        return len(gone)

    async def size(self, which: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""
        sizes = [label.size_bytes for _, label in await self._those(which)]
        return CacheSize(len(sizes), sum(sizes))

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. It was deleted here, too."""

    async def close(self) -> None:
        """See `cache.Cache`."""
        await self._redis.aclose()

    @property
    def _keys(self) -> list[str]:
        return [self._index, self._labels, self._total]

    async def _those(self, which: CacheFilter) -> list[tuple[str, EntryLabel]]:
        """The keys of `which` that are alive, with their labels; page by page: Redis serves others meanwhile."""
        found = dict[str, EntryLabel]()
        async for name, told in self._redis.hscan_iter(self._labels, count=PAGE):
            key, label = name.decode(), msgspec.json.decode(told, type=EntryLabel)
            if _is_one(key, label, which):
                found[key] = label
        async with self._redis.pipeline(transaction=False) as asked:
            for key in found:
                asked.exists(self._begin + key)
            alive = await asked.execute()
        return [item for item, lives in zip(found.items(), alive, strict=True) if lives]

    def _found(self, value: bytes, left_ms: int) -> CacheHit:
        left = left_ms / MS
        return CacheHit(_decode(value), max(0.0, self._bounds.ttl_seconds - left), left)


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(CacheEntry).decode

_GONE = """
local begin = ARGV[1]
local function gone(key)
  local label = redis.call('HGET', KEYS[2], key)
  redis.call('DEL', begin .. key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('HDEL', KEYS[2], key)
  if label then redis.call('DECRBY', KEYS[3], cjson.decode(label)[4]) end
end
"""

# The index is ordered by when entries came, in microseconds of Redis' own clock.
_KEEP = (
    _GONE
    + """
local key, value, label, size = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local ttl, max_entries, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
gone(key)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ttl * 1000, 'LIMIT', 0, 100)) do gone(old) end
redis.call('SET', begin .. key, value, 'PX', ttl)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), key)
redis.call('HSET', KEYS[2], key, label)
local total = redis.call('INCRBY', KEYS[3], size)
while total > max_bytes or redis.call('ZCARD', KEYS[1]) > max_entries do
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not oldest then redis.call('SET', KEYS[3], 0) break end
  gone(oldest)
  total = tonumber(redis.call('GET', KEYS[3]))
end
for _, name in ipairs(KEYS) do redis.call('PEXPIRE', name, ttl * 2) end
return redis.status_reply('OK')
"""
)

_DELETE = (
    _GONE
    + """
for at = 2, #ARGV do gone(ARGV[at]) end
return redis.status_reply('OK')
"""
)


def _is_one(key: str, label: EntryLabel, which: CacheFilter) -> bool:
    named = CacheEntry(
        key=key, user_id=label.user_id, model=label.model, target=label.target, path="", job_id="", answer=b""
    )
    return matches_filter(named, which)
