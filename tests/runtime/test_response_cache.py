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


class Far(MemoryCache):
    """A cache server that waits while `open` is not set, and fails while it is broken; it records requested keys."""

    def __init__(self) -> None:
        super().__init__(BOUNDS, now=asyncio.get_running_loop().time)
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.looked: list[list[str]] = []
        self.wrote: list[list[str]] = []

    async def lookup(self, keys: Sequence[str]) -> Mapping[str, CacheHit]:
        self.looked.append(list(keys))
        await self._pass()
        return await super().lookup(keys)

    async def store(self, entries: Sequence[CacheEntry]) -> None:
        self.wrote.append([entry.key for entry in entries])
        await self._pass()
        await super().store(entries)

    async def delete(self, which: CacheFilter) -> int:
        await self._pass()
        return await super().delete(which)

    async def size(self, which: CacheFilter) -> CacheSize:
        await self._pass()
        return await super().size(which)

    async def _pass(self) -> None:
        await self.open.wait()
        if self.broken:
            raise ConnectionError("broken")


@pytest.fixture
async def far() -> Far:
    return Far()


@pytest.fixture
def answers(far: Far) -> ResponseCache:
    return ResponseCache(far, Background(), ttl_seconds=60)


async def test_what_was_kept_is_at_hand_before_it_is_written(answers: ResponseCache, far: Far) -> None:
    far.open.clear()
    answers.store(an_entry("a"))
    assert await answers.lookup("a") == an_entry("a")
    assert far.looked == []
    far.open.set()
    await answers.until_stored()
    assert await far.size(CacheFilter()) == CacheSize(1, 5)


async def test_lookups_at_one_moment_are_one_group_and_the_next_is_what_came_meanwhile(
    answers: ResponseCache, far: Far
) -> None:
    await far.store([an_entry(str(number)) for number in range(10)])
    far.open.clear()
    first = [asyncio.ensure_future(answers.lookup("0")) for _ in range(5)]
    await until(lambda: _soon(far.looked))
    rest = [asyncio.ensure_future(answers.lookup(str(number % 10))) for number in range(40)]
    await asyncio.sleep(0)
    far.open.set()
    assert [entry.key for entry in await together(first) if entry] == ["0"] * 5
    assert [entry.key for entry in await together(rest) if entry] == [str(number % 10) for number in range(40)]
    assert [len(keys) for keys in far.looked] == [1, 10]


async def _soon(value: object) -> object:
    return value


async def test_writes_go_in_groups_and_the_last_of_a_key_counts(answers: ResponseCache, far: Far) -> None:
    far.open.clear()
    answers.store(an_entry("a", b"first"))
    await until(lambda: _soon(far.wrote))
    for number in range(20):
        answers.store(an_entry(f"b{number % 4}", str(number).encode()))
    far.open.set()
    await answers.until_stored()
    assert far.wrote == [["a"], ["b0", "b1", "b2", "b3"]]
    assert {key: one.entry.answer for key, one in (await far.lookup(["b0", "b3"])).items()} == {
        "b0": b"16",
        "b3": b"19",
    }


async def test_a_silent_keeper_is_waited_for_once_and_not_for_long(answers: ResponseCache, far: Far) -> None:
    await far.store([an_entry("a")])
    far.open.clear()
    async with asyncio.timeout(60):
        assert await together(answers.lookup("a") for _ in range(50)) == [None] * 50
    assert await together(answers.lookup(str(number)) for number in range(50)) == [None] * 50
    assert len(far.looked) == 1
    # and its recovery is noticed in the background
    far.open.set()

    async def is_back() -> bool:
        return await answers.lookup("a") is not None

    await until(is_back)


async def test_a_broken_keeper_is_an_empty_one(answers: ResponseCache, far: Far) -> None:
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


async def test_who_leaves_while_it_is_looked_up_disturbs_no_other(answers: ResponseCache, far: Far) -> None:
    await far.store([an_entry("a")])
    far.open.clear()
    leaving, staying = [asyncio.ensure_future(answers.lookup("a")) for _ in range(2)]
    await until(lambda: _soon(far.looked))
    leaving.cancel()
    await asyncio.sleep(0)
    far.open.set()
    assert await staying == an_entry("a")


async def test_what_was_deleted_while_it_was_looked_up_is_not_kept_at_hand(answers: ResponseCache, far: Far) -> None:
    await far.store([an_entry("a")])
    far.open.clear()
    looking = asyncio.ensure_future(answers.lookup("a"))
    await until(lambda: _soon(far.looked))
    answers.invalidate()  # as the notification of a deletion does
    far.open.set()
    assert await looking is None
    assert await answers.lookup("a") is None


async def test_deleting_takes_what_is_at_hand_and_what_is_on_its_way(answers: ResponseCache, far: Far) -> None:
    far.open.clear()
    answers.store(an_entry("first"))
    await until(lambda: _soon(far.wrote))
    answers.store(an_entry("mine"))
    answers.store(an_entry("other's", user_id=2))
    deleting = asyncio.ensure_future(answers.delete(CacheFilter(user_id=1)))
    await asyncio.sleep(0)
    far.open.set()
    assert await deleting == 1
    assert await answers.lookup("mine") is None
    assert await answers.lookup("first") is None
    assert await answers.lookup("other's") is not None


async def test_what_waits_to_be_written_has_a_bound(
    answers: ResponseCache, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 1000)
    far.open.clear()
    answers.store(an_entry("first"))
    await until(lambda: _soon(far.wrote))
    for number in range(100):
        answers.store(an_entry(str(number), bytes(100)))
    far.open.set()
    await answers.until_stored()
    assert far.wrote == [["first"], [str(number) for number in range(10)]]


async def test_without_a_cache_there_is_nothing() -> None:
    none = ResponseCache(None, Background())
    none.store(an_entry("a"))
    assert not none.is_on
    assert await none.lookup("a") is None
    assert (await none.delete(CacheFilter()), await none.size(CacheFilter())) == (0, CacheSize())
    none.invalidate()
    await none.until_stored()


def test_the_longest_unused_goes_first_and_no_bound_is_exceeded() -> None:
    kept = BoundedLRUCache[str, bytes](max_entries=3, max_bytes=10, size_of=len)
    for key in "abc":
        kept[key] = b"12"
    assert kept.get("a") == b"12"
    kept["d"] = b"12"
    assert [kept.get(key) for key in "abcd"] == [b"12", None, b"12", b"12"]
    kept["e"] = b"1234567"
    assert (len(kept), kept.currsize) == (2, 9)
    kept["e"] = b"1"
    assert (len(kept), kept.currsize) == (2, 3)
    kept["f"] = b"12345678901"
    assert (kept.get("f"), len(kept)) == (None, 2)
    assert kept.drop_where(lambda value: value == b"1") == 1
    kept.pop("nobody", None)
    assert (len(kept), kept.currsize) == (1, 2)
