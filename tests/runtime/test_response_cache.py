"""The response cache of a process: lookups and writes in groups, and a cache server that is slow, silent or broken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from signoff.cache import CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.core.cache import CacheEntry, CacheFilter, CacheHit, CacheSize
from signoff.errors import Overloaded
from signoff.infra.lru import BoundedLRUCache
from signoff.runtime import response_cache as module
from signoff.runtime.background import Background
from signoff.runtime.response_cache import ResponseCache
from support.stores import together, until

pytestmark = pytest.mark.anyio

BOUNDS = CacheBounds(ttl_seconds=60, max_entries=1000, max_bytes=100_000_000)


def an_entry(key: str, answer: bytes = b'"yes"', user_id: int = 1) -> CacheEntry:
    return CacheEntry(
        key=key, user_id=user_id, target="m", model="m", path="/v1/edits", job_id=f"of {key}", answer=answer
    )


class RemoteCache(MemoryCache):
    """A cache server that waits while `open` is not set, and fails while it is broken; it records requested keys."""

    def __init__(self) -> None:
        super().__init__(BOUNDS, now=asyncio.get_running_loop().time)
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.lookups: list[list[str]] = []
        self.writes: list[list[str]] = []

    def lacks(self, key: str) -> bool:
        return False

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        self.lookups.append(list(keys))
        await self._pass()
        return await super().lookup(keys)

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        self.writes.append([entry.key for entry in entries])
        await self._pass()
        await super().store(entries)

    async def delete(self, filters: CacheFilter) -> int:
        await self._pass()
        return await super().delete(filters)

    async def size(self, filters: CacheFilter) -> CacheSize:
        await self._pass()
        return await super().size(filters)

    async def _pass(self) -> None:
        await self.open.wait()
        if self.broken:
            raise ConnectionError("broken")


@pytest.fixture
async def far() -> RemoteCache:
    return RemoteCache()


@pytest.fixture
def answers(far: RemoteCache) -> ResponseCache:
    return ResponseCache(far, Background(), ttl_seconds=60)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the time limits, so that a busy machine causes no misses."""
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(module, "STORE_WAIT_SECONDS", 60)


async def test_a_stored_answer_is_available_before_it_is_written(answers: ResponseCache, far: RemoteCache) -> None:
    far.open.clear()
    answers.store(an_entry("a"))
    assert await answers.lookup("a") == an_entry("a")
    assert far.lookups == []
    far.open.set()
    await answers.until_stored()
    assert await far.size(CacheFilter()) == CacheSize(1, 5)


async def test_concurrent_lookups_form_a_group_and_later_ones_the_next_group(
    answers: ResponseCache, far: RemoteCache
) -> None:
    await far.store([an_entry(str(number)) for number in range(10)])
    far.open.clear()
    first = [asyncio.ensure_future(answers.lookup("0")) for _ in range(5)]
    await until(lambda: _value_of(far.lookups))
    rest = [asyncio.ensure_future(answers.lookup(str(number % 10))) for number in range(40)]
    await asyncio.sleep(0)
    far.open.set()
    assert [entry.key for entry in await together(first) if entry] == ["0"] * 5
    assert [entry.key for entry in await together(rest) if entry] == [str(number % 10) for number in range(40)]
    assert [len(keys) for keys in far.lookups] == [1, 10]


async def _value_of(value: object) -> object:
    return value


async def test_writes_form_groups_and_the_last_one_of_a_key_wins(answers: ResponseCache, far: RemoteCache) -> None:
    far.open.clear()
    answers.store(an_entry("a", b"first"))
    await until(lambda: _value_of(far.writes))
    for number in range(20):
        answers.store(an_entry(f"b{number % 4}", str(number).encode()))
    far.open.set()
    await answers.until_stored()
    assert far.writes == [["a"], ["b0", "b1", "b2", "b3"]]
    assert {key: hit.entry.answer for key, hit in (await far.lookup(["b0", "b3"])).items()} == {
        "b0": b"16",
        "b3": b"19",
    }


async def test_a_silent_cache_server_delays_lookups_once_and_briefly(
    answers: ResponseCache, far: RemoteCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT_SECONDS", 0.25)
    await far.store([an_entry("a")])
    far.open.clear()
    async with asyncio.timeout(60):
        assert await together(answers.lookup("a") for _ in range(50)) == [None] * 50
    assert await together(answers.lookup(str(number)) for number in range(50)) == [None] * 50
    assert len(far.lookups) == 1
    # and its recovery is noticed in the background
    far.open.set()

    async def is_back() -> bool:
        return await answers.lookup("a") is not None

    await until(is_back)


async def test_a_broken_cache_server_is_treated_as_an_empty_one(answers: ResponseCache, far: RemoteCache) -> None:
    far.broken = True
    assert await answers.lookup("a") is None
    answers.store(an_entry("a"))
    await answers.until_stored()
    assert await answers.lookup("a") == an_entry("a")  # from the local copy
    with pytest.raises(Overloaded):
        await answers.delete(CacheFilter())
    with pytest.raises(Overloaded):
        await answers.size(CacheFilter())
    assert await answers.lookup("a") is None  # the local copy is deleted all the same
    far.broken = False

    async def is_back() -> bool:
        answers.store(an_entry("b"))
        await answers.until_stored()
        return "b" in await far.lookup(["b"])

    await until(is_back)


async def test_a_cancelled_lookup_does_not_affect_others(answers: ResponseCache, far: RemoteCache) -> None:
    await far.store([an_entry("a")])
    far.open.clear()
    leaving, staying = [asyncio.ensure_future(answers.lookup("a")) for _ in range(2)]
    await until(lambda: _value_of(far.lookups))
    leaving.cancel()
    await asyncio.sleep(0)
    far.open.set()
    assert await staying == an_entry("a")


async def test_an_entry_deleted_during_a_lookup_is_not_cached_locally(answers: ResponseCache, far: RemoteCache) -> None:
    await far.store([an_entry("a")])
    far.open.clear()
    task = asyncio.ensure_future(answers.lookup("a"))
    await until(lambda: _value_of(far.lookups))
    answers.invalidate()  # as the notification of a deletion does
    far.open.set()
    assert await task is None
    assert await answers.lookup("a") is None


async def test_an_entry_that_remains_is_found_though_others_are_deleted_during_the_lookup(
    answers: ResponseCache, far: RemoteCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "on_remote_delete", lambda: None)  # as of a shared cache
    await far.store([an_entry("a")])
    far.open.clear()
    task = asyncio.ensure_future(answers.lookup("a"))
    await until(lambda: _value_of(far.lookups))
    answers.invalidate()
    far.open.set()
    assert await task == an_entry("a")


async def test_an_entry_looked_up_during_its_deletion_is_not_cached_locally(
    answers: ResponseCache, far: RemoteCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.store([an_entry("a")])
    delete = far.delete

    async def look_up_and_delete(filters: CacheFilter) -> int:
        assert await answers.lookup("a") == an_entry("a")
        return await delete(filters)

    monkeypatch.setattr(far, "delete", look_up_and_delete)
    assert await answers.delete(CacheFilter()) == 1
    assert await answers.lookup("a") is None


async def test_deleting_includes_local_copies_and_pending_writes(answers: ResponseCache, far: RemoteCache) -> None:
    far.open.clear()
    answers.store(an_entry("first"))
    await until(lambda: _value_of(far.writes))
    answers.store(an_entry("mine"))
    answers.store(an_entry("other's", user_id=2))
    task = asyncio.ensure_future(answers.delete(CacheFilter(user_id=1)))
    await asyncio.sleep(0)
    far.open.set()
    assert await task == 1
    assert await answers.lookup("mine") is None
    assert await answers.lookup("first") is None
    assert await answers.lookup("other's") is not None


async def test_pending_writes_are_bounded(
    answers: ResponseCache, far: RemoteCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 1000)
    far.open.clear()
    answers.store(an_entry("first"))
    await until(lambda: _value_of(far.writes))
    for number in range(100):
        answers.store(an_entry(str(number), bytes(100)))
    far.open.set()
    await answers.until_stored()
    assert far.writes == [["first"], [str(number) for number in range(10)]]


async def test_without_a_cache_nothing_is_stored() -> None:
    disabled = ResponseCache(None, Background())
    disabled.store(an_entry("a"))
    assert not disabled.is_on
    assert await disabled.lookup("a") is None
    assert (await disabled.delete(CacheFilter()), await disabled.size(CacheFilter())) == (0, CacheSize())
    disabled.invalidate()
    await disabled.until_stored()


def test_the_least_recently_used_entry_is_evicted_and_no_bound_is_exceeded() -> None:
    cache = BoundedLRUCache[str, bytes](max_entries=3, max_bytes=10, size_of=len)
    for key in "abc":
        cache[key] = b"12"
    assert cache.get("a") == b"12"
    cache["d"] = b"12"
    assert [cache.get(key) for key in "abcd"] == [b"12", None, b"12", b"12"]
    cache["e"] = b"1234567"
    assert (len(cache), cache.currsize) == (2, 9)
    cache["e"] = b"1"
    assert (len(cache), cache.currsize) == (2, 3)
    cache["f"] = b"12345678901"
    assert (cache.get("f"), len(cache)) == (None, 2)
    assert cache.drop_where(lambda value: value == b"1") == 1
    cache.pop("nobody", None)
    assert (len(cache), cache.currsize) == (1, 2)
