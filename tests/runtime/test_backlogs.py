"""Bounds on the unfinished jobs of a user: an estimate that is never too low for this process's own submissions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from signoff.core.backlog import Backlog
from signoff.errors import BacklogFull
from signoff.runtime import backlogs
from signoff.runtime.backlogs import Backlogs

pytestmark = pytest.mark.anyio


class CountedJobs:
    """A store that counts what the test says, and how often it is read."""

    def __init__(self, stored: Backlog) -> None:
        self.stored = stored
        self.counts = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def backlog(self, user_id: int, *, at_most: int) -> Backlog:
        self.counts += 1
        stored = self.stored
        await self.may_end.wait()
        return stored


@pytest.fixture
def jobs() -> CountedJobs:
    return CountedJobs(Backlog(0, 0))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that moves the clock of the module forward."""
    time = 1000.0

    class Clock:
        def time(self) -> float:
            return time

    def advance(seconds: float) -> None:
        nonlocal time
        time += seconds

    class Module:
        Lock = asyncio.Lock
        get_running_loop = Clock

    monkeypatch.setattr(backlogs, "asyncio", Module)
    return advance


def bounded(jobs: Any, max_jobs: int = 3, max_bytes: int = 100) -> Backlogs:
    return Backlogs(jobs, max_jobs=max_jobs, max_bytes=max_bytes)


async def submit(bounds: Backlogs, user_id: int = 1, size_bytes: int = 1) -> bool:
    """Return False if the submission was refused."""
    try:
        with await bounds.reserve(user_id, size_bytes):
            return True
    except BacklogFull:
        return False


async def test_a_user_may_have_so_many_jobs_and_the_store_is_read_once_a_second(
    jobs: CountedJobs, now: Callable[[float], None]
) -> None:
    bounds = bounded(jobs)
    assert [await submit(bounds) for _ in range(5)] == [True, True, True, False, False]
    assert await submit(bounds, user_id=2)
    assert jobs.counts == 2
    # an end counts once the jobs are counted again, and so do the jobs of other processes
    jobs.stored = Backlog(2, 2)
    assert not await submit(bounds)
    now(backlogs.FRESH_SECONDS)
    assert [await submit(bounds) for _ in range(2)] == [True, False]
    assert jobs.counts == 3


async def test_a_user_may_have_so_many_bytes(jobs: CountedJobs) -> None:
    bounds = bounded(jobs, max_jobs=100)
    jobs.stored = Backlog(1, 50)
    assert [await submit(bounds, size_bytes=size) for size in (51, 30, 21, 20, 1)] == [False, True, False, True, False]


async def test_jobs_that_are_stored_at_the_same_time_never_exceed_the_bound(jobs: CountedJobs) -> None:
    bounds, may_store = bounded(jobs), asyncio.Event()

    async def store_slowly() -> bool:
        try:
            with await bounds.reserve(1, 1):
                await may_store.wait()
                return True
        except BacklogFull:
            return False

    calls = [asyncio.ensure_future(store_slowly()) for _ in range(20)]
    done, pending = await asyncio.wait(calls, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert not any(call.result() for call in done)
    may_store.set()
    assert sum(await asyncio.gather(*calls)) == 3
    assert len(pending) >= 3


async def test_a_job_that_is_being_stored_during_a_count_is_added_to_it(
    jobs: CountedJobs, now: Callable[[float], None]
) -> None:
    bounds = bounded(jobs)
    slot = await bounds.reserve(1, 1)
    now(backlogs.FRESH_SECONDS)
    # the count reads the store before the job is committed; another one goes by the former estimate meanwhile
    jobs.may_end.clear()
    counting = asyncio.ensure_future(submit(bounds))
    while jobs.counts < 2:
        await asyncio.sleep(0)
    assert await submit(bounds)
    with slot:
        pass
    jobs.may_end.set()
    assert await counting
    assert not await submit(bounds)


async def test_a_slow_count_is_repeated_less_often(jobs: CountedJobs, now: Callable[[float], None]) -> None:
    class SlowJobs(CountedJobs):
        async def backlog(self, user_id: int, *, at_most: int) -> Backlog:
            now(1)
            return await super().backlog(user_id, at_most=at_most)

    jobs = SlowJobs(Backlog(0, 0))
    bounds = bounded(jobs)
    for seconds, counts in ((0, 1), (49, 1), (1, 2)):
        now(seconds)
        assert await submit(bounds)
        assert jobs.counts == counts


async def test_users_that_submit_nothing_any_more_are_dropped(
    jobs: CountedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs, "MAX_USERS", 10)
    bounds = bounded(jobs)
    slot = await bounds.reserve(0, 1)
    for user in range(100):
        assert await submit(bounds, user)
        assert len(bounds._users) <= 11
    with slot:
        assert 0 in bounds._users
