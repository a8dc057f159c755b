"""Contract tests of `cache.Cache`, run against every cache; two caches stand for two processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from signoff.cache import Cache, CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.caches.redis import RedisCache
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.core.tokens import Usage
from signoff.stores.cache import SqlCache
from signoff.stores.schema import cached
from signoff.stores.sql import SqlStore
from support.stores import a_call, a_step, held, leased, logged, opened, together

pytestmark = pytest.mark.anyio

Caches = Callable[[CacheBounds], contextlib.AbstractAsyncContextManager[Cache]]
PLENTY = CacheBounds(ttl_seconds=60, max_entries=1000, max_bytes=10_000_000)
ALL = CacheFilter()
_numbers = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def caches(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Caches:
    """Return a function that opens a cache of one kind; all calls share their entries, except for the kind `memory`."""
    kind: str = request.param
    url = request.getfixturevalue({"postgres": "postgres_url", "redis": "redis_url"}.get(kind, "prefix"))

    @contextlib.asynccontextmanager
    async def open_cache(bounds: CacheBounds) -> AsyncIterator[Cache]:
        cache: Cache
        if kind == "memory":
            yield MemoryCache(bounds, now=asyncio.get_running_loop().time)
        elif kind == "redis":
            cache = RedisCache(url, prefix=prefix, bounds=bounds)
            await cache.start()
            yield cache
            await cache.close()
        else:
            async with opened(f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else url) as store:
                yield CacheOfStoredJobs(store, bounds)

    return open_cache


@pytest.fixture
async def cache(caches: Caches) -> AsyncIterator[Cache]:
    """Yield an empty cache with wide bounds."""
    async with caches(PLENTY) as cache:
        yield cache


class CacheOfStoredJobs(SqlCache):
    """A cache in a SQL database that logs a call with the answer of each entry first, as the server does."""

    def __init__(self, store: SqlStore, bounds: CacheBounds) -> None:
        super().__init__(store._database, bounds)
        self._store = store

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        """Store the entries and the calls that they refer to."""
        calls = [
            a_call(id=entry.job_id, path=entry.path, response=entry.answer, usage=entry.usage) for entry in entries
        ]
        writes = [await self._store.jobs.log_call(call, actor="ann", verbs=["submit", "succeed"]) for call in calls]
        # A write fails if another task stores the same entries at this time.
        await asyncio.gather(*writes, return_exceptions=True)
        await super().store(entries)


def an_entry(key: str, answer: bytes = b'"yes"', **more: Any) -> CacheEntry:
    defaults: dict[str, Any] = {
        "user_id": 1,
        "target": "echo/x",
        "model": "echo",
        "path": "/v1/chat/completions",
        "job_id": f"job {next(_numbers)} of {key}",
        "usage": Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
    }
    return CacheEntry(key=key, answer=answer, **(defaults | more))


async def cached_keys(cache: Cache, *keys: str) -> list[str]:
    """Return those of `keys` that the cache has, in the same order."""
    hits = await cache.lookup(keys)
    return [key for key in keys if key in hits]


async def test_lookup_returns_exactly_the_stored_entries(cache: Cache) -> None:
    entries = [an_entry("a", b"\x00\xff any bytes"), an_entry("b", usage=None), an_entry("ü", b"")]
    await cache.store(entries)

    hits = await cache.lookup(["a", "b", "ü", "nobody", "a"])

    assert {key: hit.entry for key, hit in hits.items()} == {entry.key: entry for entry in entries}
    assert await cache.lookup([]) == {}


async def test_an_entry_never_counts_as_missing(cache: Cache, caches: Caches, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["caches"]
    assert cache.lacks("a") == (kind in {"memory", "sqlite"})  # the others cannot tell without waiting
    await cache.store([an_entry("a")])
    assert not cache.lacks("a")
    if kind != "memory":
        async with caches(PLENTY) as other:
            assert not other.lacks("a")
    await cache.delete(ALL)
    assert cache.lacks("a") == (kind in {"memory", "sqlite"})


async def test_a_hit_reports_its_age_and_its_remaining_lifetime(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=100, max_entries=10, max_bytes=1000)) as cache:
        began = asyncio.get_running_loop().time()
        await cache.store([an_entry("a")])
        await asyncio.sleep(0.05)
        hit = (await cache.lookup(["a"]))["a"]
        elapsed = asyncio.get_running_loop().time() - began
        assert 0.04 <= hit.age_seconds <= elapsed + 0.01
        assert hit.age_seconds + hit.left_seconds == pytest.approx(100, abs=0.01)


async def test_storing_a_key_again_replaces_its_entry(cache: Cache) -> None:
    await cache.store([an_entry("a", b"old"), an_entry("b", b"other")])
    await cache.store([an_entry("a", b"new one")])
    assert (await cache.lookup(["a"]))["a"].entry.answer == b"new one"
    assert await cache.size(ALL) == CacheSize(2, len(b"new one") + len(b"other"))


async def test_an_expired_entry_is_gone(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=2, max_entries=10, max_bytes=1000)) as cache:
        await cache.store([an_entry("a")])
        async with asyncio.timeout(60):
            while await cached_keys(cache, "a"):
                await asyncio.sleep(0.01)
        assert await cache.size(ALL) == CacheSize(0, 0)
        hits = dict[str, CacheHit]()
        async with asyncio.timeout(60):
            while "a" not in hits:  # on a busy machine, it may expire at once
                await cache.store([an_entry("a", b"again")])
                hits = dict(await cache.lookup(["a"]))
        assert hits["a"].entry.answer == b"again"


async def test_the_number_of_entries_is_bounded_and_the_oldest_are_evicted(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=5, max_bytes=100_000)) as cache:
        for number in range(12):
            await cache.store([an_entry(str(number))])
            assert (await cache.size(ALL)).entries == min(number + 1, 5)
        assert await cached_keys(cache, *map(str, range(12))) == ["7", "8", "9", "10", "11"]
        # and when all are stored in one call
        await cache.store([an_entry(f"more {number}") for number in range(20)])
        assert (await cache.size(ALL)).entries == 5


async def test_the_total_size_is_bounded(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=100, max_bytes=50_000)) as cache:
        for number in range(12):
            await cache.store([an_entry(str(number), bytes(10_000))])
            assert (await cache.size(ALL)).size_bytes <= 50_000
        remaining = await cached_keys(cache, *map(str, range(12)))
        # Five answers fill the bound exactly; a cache that also counts an overhead keeps four.
        assert remaining in (["8", "9", "10", "11"], ["7", "8", "9", "10", "11"])
        await cache.store([an_entry("too large", bytes(50_001))])
        assert await cached_keys(cache, "too large", "11") == ["11"]


async def test_answers_of_a_megabyte_and_more_are_returned_unchanged(cache: Cache) -> None:
    entries = [an_entry(str(number), bytes([number]) * (1024 * 1024 + number)) for number in range(4)]
    await cache.store(entries)
    hits = await cache.lookup([entry.key for entry in entries])
    assert all(hits[entry.key].entry == entry for entry in entries)


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (CacheFilter(key="a1"), ["a2", "b1", "b2"]),
        (CacheFilter(user_id=1), ["b1", "b2"]),
        (CacheFilter(model="m2"), ["a1", "b1"]),
        (CacheFilter(target="t1"), ["a2", "b2"]),
        (CacheFilter(user_id=2, model="m1"), ["a1", "a2", "b2"]),
        (CacheFilter(user_id=2, key="a1"), ["a1", "a2", "b1", "b2"]),
        (CacheFilter(user_id=0), ["a1", "a2", "b1", "b2"]),
        (ALL, []),
    ],
)
async def test_delete_removes_exactly_the_matching_entries(cache: Cache, which: CacheFilter, left: list[str]) -> None:
    await cache.store(
        [
            an_entry("a1", b"1", user_id=1, model="m1", target="t1"),
            an_entry("a2", b"22", user_id=1, model="m2", target="t2"),
            an_entry("b1", b"333", user_id=2, model="m1", target="t1"),
            an_entry("b2", b"4444", user_id=2, model="m2", target="t2"),
        ]
    )
    matching = await cache.size(which)

    assert await cache.delete(which) == matching.entries == 4 - len(left)

    assert await cached_keys(cache, "a1", "a2", "b1", "b2") == left
    assert await cache.size(which) == CacheSize(0, 0)
    assert await cache.delete(which) == 0
    assert (await cache.size(ALL)).size_bytes == sum({"a1": 1, "a2": 2, "b1": 3, "b2": 4}[key] for key in left)


async def test_a_deleted_entry_makes_room_for_another(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=3, max_bytes=100_000)) as cache:
        await cache.store([an_entry(str(number)) for number in range(3)])
        await cache.delete(CacheFilter(key="2"))
        await cache.store([an_entry("3")])
        assert await cached_keys(cache, "0", "1", "2", "3") == ["0", "1", "3"]


async def test_the_same_keys_can_be_stored_concurrently(caches: Caches) -> None:
    async with caches(PLENTY) as one, caches(PLENTY) as other:
        entries = [an_entry(str(number), bytes(100)) for number in range(50)]
        halves = [entries[::-1], entries]
        await together(cache.store(half) for _ in range(5) for cache, half in zip((one, other), halves, strict=True))
        assert await one.size(ALL) == CacheSize(50, 5000)
        hits = await one.lookup([entry.key for entry in entries])
        assert all(hits[entry.key].entry == entry for entry in entries)


async def test_a_shared_cache_is_seen_by_every_process(caches: Caches, request: pytest.FixtureRequest) -> None:
    is_shared = request.node.callspec.params["caches"] != "memory"
    async with caches(PLENTY) as one, caches(PLENTY) as other:
        await one.store([an_entry("a")])
        assert await cached_keys(other, "a") == (["a"] if is_shared else [])
        await other.delete(ALL)
        one.on_remote_delete()
        assert await cached_keys(one, "a") == []


async def test_two_prefixes_in_one_redis_are_separate_caches(redis_url: str, prefix: str) -> None:
    one = RedisCache(redis_url, prefix=f"{prefix}1", bounds=PLENTY)
    other = RedisCache(redis_url, prefix=f"{prefix}2", bounds=PLENTY)
    await one.store([an_entry("a")])
    assert await cached_keys(other, "a") == []
    await other.delete(ALL)
    assert await cached_keys(one, "a") == ["a"]
    await one.close()
    await other.close()


@pytest.mark.parametrize("caches", ["sqlite", "postgres"], indirect=True)
async def test_an_answer_is_read_from_its_job_and_not_stored_again(caches: Caches) -> None:
    async with caches(PLENTY) as cache:
        assert isinstance(cache, CacheOfStoredJobs)
        # given an answer of a job in the table of jobs, which had no usage in its body
        job = await leased(cache._store)
        used = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        changes = {"response": b'{"choices":[]}', "usage": used}
        await cache._store.jobs.transition(job.id, a_step("succeed", changes=changes))
        whole = msgspec.json.encode({"choices": [], "usage": used})
        entry = an_entry("a", whole, job_id=job.id, usage=used)
        await SqlCache.store(cache, [entry])
        # then a lookup finds the answer with its usage
        assert (await cache.lookup(["a"]))["a"].entry == entry
        # and the entry has no answer of its own
        assert "answer" not in cached.c
        # and it is gone with the job
        assert await cache._store.jobs.purge(-1, 10) == 1
        assert await cache.lookup(["a"]) == {}


@pytest.mark.parametrize("caches", ["sqlite", "postgres"], indirect=True)
async def test_an_entry_of_a_job_without_a_released_answer_is_a_miss(caches: Caches) -> None:
    async with caches(PLENTY) as cache:
        assert isinstance(cache, CacheOfStoredJobs)
        jobs = [await held(cache._store), await leased(cache._store)]
        calls = [a_call(status="fail")]
        await logged(cache._store, *calls)
        entries = [an_entry(job.id, job_id=job.id) for job in (*jobs, *calls)]
        await SqlCache.store(cache, [*entries, an_entry("unknown")])
        assert await cache.lookup([*(entry.key for entry in entries), "unknown"]) == {}
