"""What every cache promises, whichever keeper it is; two of them are two processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from signoff.cache import Cache, CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.caches.redis import RedisCache
from signoff.core.cache import CacheEntry, CacheFilter, CacheSize
from signoff.core.tokens import Usage
from support.stores import opened, together

pytestmark = pytest.mark.anyio

Caches = Callable[[CacheBounds], contextlib.AbstractAsyncContextManager[Cache]]
PLENTY = CacheBounds(ttl_seconds=60, max_entries=1000, max_bytes=10_000_000)
ALL = CacheFilter()


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def caches(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Caches:
    """Return what opens a cache of one kind; each time it is the same one, but for the one in memory."""
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
                yield store.cache(bounds)  # type: ignore[union-attr]

    return open_cache


@pytest.fixture
async def cache(caches: Caches) -> AsyncIterator[Cache]:
    """Yield a cache that is empty, and has room."""
    async with caches(PLENTY) as cache:
        yield cache


def an_entry(key: str, answer: bytes = b'"yes"', **more: Any) -> CacheEntry:
    plain: dict[str, Any] = {
        "user_id": 1,
        "target": "echo/x",
        "model": "echo",
        "path": "/v1/chat/completions",
        "job_id": f"job of {key}",
        "usage": Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
    }
    return CacheEntry(key=key, answer=answer, **(plain | more))


async def there(cache: Cache, *keys: str) -> list[str]:
    """Those of `keys` that are there, in that order."""
    found = await cache.lookup(keys)
    return [key for key in keys if key in found]


async def test_what_is_kept_is_found_whole_and_nothing_else_is(cache: Cache) -> None:
    entries = [an_entry("a", b"\x00\xff any bytes"), an_entry("b", usage=None), an_entry("ü", b"")]
    await cache.store(entries)

    found = await cache.lookup(["a", "b", "ü", "nobody", "a"])

    assert {key: one.entry for key, one in found.items()} == {entry.key: entry for entry in entries}
    assert await cache.lookup([]) == {}


async def test_what_is_found_says_how_old_it_is_and_how_long_it_stays(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=100, max_entries=10, max_bytes=1000)) as cache:
        began = asyncio.get_running_loop().time()
        await cache.store([an_entry("a")])
        await asyncio.sleep(0.05)
        found = (await cache.lookup(["a"]))["a"]
        took = asyncio.get_running_loop().time() - began
        assert 0.04 <= found.age_seconds <= took + 0.01
        assert found.age_seconds + found.left_seconds == pytest.approx(100, abs=0.01)


async def test_what_is_kept_again_takes_the_place_of_what_was_there(cache: Cache) -> None:
    await cache.store([an_entry("a", b"old"), an_entry("b", b"other")])
    await cache.store([an_entry("a", b"new one")])
    assert (await cache.lookup(["a"]))["a"].entry.answer == b"new one"
    assert await cache.size(ALL) == CacheSize(2, len(b"new one") + len(b"other"))


async def test_what_is_old_is_not_there(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=2, max_entries=10, max_bytes=1000)) as cache:
        await cache.store([an_entry("a")])
        async with asyncio.timeout(60):
            while await there(cache, "a"):
                await asyncio.sleep(0.01)
        assert await cache.size(ALL) == CacheSize(0, 0)
        await cache.store([an_entry("a", b"again")])
        assert (await cache.lookup(["a"]))["a"].entry.answer == b"again"


async def test_there_are_never_more_than_so_many_and_the_oldest_goes_first(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=5, max_bytes=100_000)) as cache:
        for number in range(12):
            await cache.store([an_entry(str(number))])
            assert (await cache.size(ALL)).entries == min(number + 1, 5)
        assert await there(cache, *map(str, range(12))) == ["7", "8", "9", "10", "11"]
        # and all at once
        await cache.store([an_entry(f"more {number}") for number in range(20)])
        assert (await cache.size(ALL)).entries == 5


async def test_there_are_never_more_bytes_than_that(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=100, max_bytes=50_000)) as cache:
        for number in range(12):
            await cache.store([an_entry(str(number), bytes(10_000))])
            assert (await cache.size(ALL)).size_bytes <= 50_000
        left = await there(cache, *map(str, range(12)))
        assert left in (["8", "9", "10", "11"], ["7", "8", "9", "10", "11"])
        await cache.store([an_entry("too large", bytes(50_001))])
        assert await there(cache, "too large", "11") == ["11"]


async def test_answers_of_a_megabyte_and_more_come_back_byte_for_byte(cache: Cache) -> None:
    large = [an_entry(str(number), bytes([number]) * (1024 * 1024 + number)) for number in range(4)]
    await cache.store(large)
    found = await cache.lookup([entry.key for entry in large])
    assert all(found[entry.key].entry == entry for entry in large)


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
async def test_those_that_are_meant_are_deleted_and_no_others(
    cache: Cache, which: CacheFilter, left: list[str]
) -> None:
    await cache.store(
        [
            an_entry("a1", b"1", user_id=1, model="m1", target="t1"),
            an_entry("a2", b"22", user_id=1, model="m2", target="t2"),
            an_entry("b1", b"333", user_id=2, model="m1", target="t1"),
            an_entry("b2", b"4444", user_id=2, model="m2", target="t2"),
        ]
    )
    meant = await cache.size(which)

    assert await cache.delete(which) == meant.entries == 4 - len(left)

    assert await there(cache, "a1", "a2", "b1", "b2") == left
    assert await cache.size(which) == CacheSize(0, 0)
    assert await cache.delete(which) == 0
    assert (await cache.size(ALL)).size_bytes == sum(int(key[1]) + 2 * (key[0] == "b") for key in left)


async def test_what_was_deleted_has_room_for_others(caches: Caches) -> None:
    async with caches(CacheBounds(ttl_seconds=60, max_entries=3, max_bytes=100_000)) as cache:
        await cache.store([an_entry(str(number)) for number in range(3)])
        await cache.delete(CacheFilter(key="2"))
        await cache.store([an_entry("3")])
        assert await there(cache, "0", "1", "2", "3") == ["0", "1", "3"]


async def test_many_may_keep_the_same_keys_at_once(caches: Caches) -> None:
    async with caches(PLENTY) as one, caches(PLENTY) as other:
        entries = [an_entry(str(number), bytes(100)) for number in range(50)]
        halves = [entries[::-1], entries]
        await together(cache.store(half) for _ in range(5) for cache, half in zip((one, other), halves, strict=True))
        assert await one.size(ALL) == CacheSize(50, 5000)
        found = await one.lookup([entry.key for entry in entries])
        assert all(found[entry.key].entry == entry for entry in entries)


async def test_one_process_finds_what_another_has_kept(caches: Caches, request: pytest.FixtureRequest) -> None:
    is_shared = request.node.callspec.params["caches"] != "memory"
    async with caches(PLENTY) as one, caches(PLENTY) as other:
        await one.store([an_entry("a")])
        assert await there(other, "a") == (["a"] if is_shared else [])
        await other.delete(ALL)
        one.on_remote_delete()
        assert await there(one, "a") == []


async def test_two_caches_in_one_redis_have_nothing_to_do_with_each_other(redis_url: str, prefix: str) -> None:
    one = RedisCache(redis_url, prefix=f"{prefix}1", bounds=PLENTY)
    other = RedisCache(redis_url, prefix=f"{prefix}2", bounds=PLENTY)
    await one.store([an_entry("a")])
    assert await there(other, "a") == []
    await other.delete(ALL)
    assert await there(one, "a") == ["a"]
    await one.close()
    await other.close()
