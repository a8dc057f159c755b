"""The response cache in Redis: one key with a time to live for each entry, and an index that keeps the bounds.

The index consists of a sorted set of the keys by age, a hash of their labels, and the total size. All keys share one
hash tag, so they are on one node of a cluster. A script makes each change that affects several keys.
"""

from collections.abc import Mapping, Sequence

import msgspec

from signoff.cache import CacheBounds, matches_filter
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.infra.redis import make_client

ANSWER_SECONDS = 1.0
PAGE_SIZE = 500
MS_PER_SECOND = 1000


class EntryLabel(msgspec.Struct, frozen=True, array_like=True):
    """The attributes of an entry in the index, for filters and sums that do not read the entries.

    The script `_DROP` reads `size_bytes` as the fourth item.
    """

    user_id: int
    """Owner of the entry."""
    model: str
    """Model that answered."""
    target: str
    """Name that the request gave."""
    size_bytes: int
    """Size of the answer."""


class RedisCache:
    """A cache in Redis, shared by all processes with the same URL and prefix; see `cache.Cache`.

    Each command waits for at most ANSWER_SECONDS, and is not retried.
    """

    is_shared = True

    def __init__(self, url: str, *, prefix: str, bounds: CacheBounds) -> None:
        self._redis = make_client(url, answer_seconds=ANSWER_SECONDS)
        self._prefix = f"{{{prefix}:cache}}:"
        self._index, self._labels, self._total = (f"{self._prefix}{name}" for name in ("index", "labels", "bytes"))
        self._bounds = bounds
        self._store_script = self._redis.register_script(_STORE)
        self._delete_script = self._redis.register_script(_DELETE)

    async def start(self) -> None:
        """See `cache.Cache`. The client connects with the first command."""

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        """See `cache.Cache`."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(self._prefix + key).pttl(self._prefix + key)
            replies = await pipeline.execute()
        rows = zip(keys, replies[::2], replies[1::2], strict=True)
        return {key: self._hit_of(value, left_ms) for key, value, left_ms in rows if value is not None and left_ms > 0}

    def lacks(self, key: str) -> bool:
        """See `cache.Cache`. Only the server knows."""
        return False

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """See `cache.Cache`."""
        bounds = self._bounds
        stored = [entry for entry in entries if len(entry.answer) <= bounds.max_bytes]
        limits = [round(bounds.ttl_seconds * MS_PER_SECOND), bounds.max_entries, bounds.max_bytes]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for entry in stored:
                label = EntryLabel(entry.user_id, entry.model, entry.target, len(entry.answer))
                values = [entry.key, _encode(entry), msgspec.json.encode(label), len(entry.answer), *limits]
                await self._store_script(keys=self._keys, args=[self._prefix, *values], client=pipeline)
            await pipeline.execute()

    async def delete(self, filters: CacheFilter) -> int:
        """See `cache.Cache`."""
        keys = [key for key, _ in await self._find(filters)]
        for start in range(0, len(keys), PAGE_SIZE):
            await self._delete_script(keys=self._keys, args=[self._prefix, *keys[start : start + PAGE_SIZE]])
        return len(keys)

    async def size(self, filters: CacheFilter) -> CacheSize:
        """See `cache.Cache`."""
        sizes = [label.size_bytes for _, label in await self._find(filters)]
        return CacheSize(len(sizes), sum(sizes))

    def on_remote_delete(self) -> None:
        """See `cache.Cache`. Nothing to do: the entries are shared."""

    async def close(self) -> None:
        """See `cache.Cache`."""
        await self._redis.aclose()

    @property
    def _keys(self) -> list[str]:
        return [self._index, self._labels, self._total]

    async def _find(self, filters: CacheFilter) -> list[tuple[str, EntryLabel]]:
        """Return the keys and labels of unexpired entries that match. Scan in pages, so that Redis is not blocked."""
        labels = dict[str, EntryLabel]()
        async for name, value in self._redis.hscan_iter(self._labels, count=PAGE_SIZE):
            key, label = name.decode(), msgspec.json.decode(value, type=EntryLabel)
            if _matches(key, label, filters):
                labels[key] = label
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in labels:
                pipeline.exists(self._prefix + key)
            exists = await pipeline.execute()
        return [item for item, is_there in zip(labels.items(), exists, strict=True) if is_there]

    def _hit_of(self, value: bytes, left_ms: int) -> CacheHit:
        left = left_ms / MS_PER_SECOND
        age = max(0.0, self._bounds.ttl_seconds - left)
        return CacheHit(_decode(value), age, left)


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(CacheEntry).decode

# KEYS are the index, the labels and the total size; ARGV[1] is the prefix of the keys of entries.
_DROP = """
local prefix = ARGV[1]
local function drop(key)
  local label = redis.call('HGET', KEYS[2], key)
  redis.call('DEL', prefix .. key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('HDEL', KEYS[2], key)
  if label then redis.call('DECRBY', KEYS[3], cjson.decode(label)[4]) end
end
"""

# The scores of the index are the times when entries were stored, in microseconds of Redis' clock; `ttl` is in
# milliseconds. A call drops at most 100 expired entries, so that it stays short. If the index is empty but the total is
# not, the total was wrong and is reset. The index expires after two lifetimes of an entry, so it outlives them all.
_STORE = (
    _DROP
    + """
local key, value, label, size = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local ttl, max_entries, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
drop(key)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ttl * 1000, 'LIMIT', 0, 100)) do drop(old) end
redis.call('SET', prefix .. key, value, 'PX', ttl)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), key)
redis.call('HSET', KEYS[2], key, label)
local total = redis.call('INCRBY', KEYS[3], size)
while total > max_bytes or redis.call('ZCARD', KEYS[1]) > max_entries do
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not oldest then redis.call('SET', KEYS[3], 0) break end
  drop(oldest)
  total = tonumber(redis.call('GET', KEYS[3]))
end
for _, name in ipairs(KEYS) do redis.call('PEXPIRE', name, ttl * 2) end
return redis.status_reply('OK')
"""
)

_DELETE = (
    _DROP
    + """
for at = 2, #ARGV do drop(ARGV[at]) end
return redis.status_reply('OK')
"""
)


def _matches(key: str, label: EntryLabel, filters: CacheFilter) -> bool:
    """Return True if the entry with this label matches; filters read no other fields of an entry."""
    entry = CacheEntry(
        key=key, user_id=label.user_id, model=label.model, target=label.target, path="", job_id="", answer=b""
    )
    return matches_filter(entry, filters)
