"""Contract tests of stores: departures of callers, who get the job that they left when they return."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from signoff.core.job import Job
from support.stores import AStore, a_job, a_step

pytestmark = pytest.mark.anyio
REQUEST: dict[str, Any] = {"user_id": 7, "token_id": 8, "fingerprint": "f"}
AT_ANY_TIME = 600.0


async def left(store: AStore, **more: Any) -> Job:
    """Store a job whose caller has left, and return it."""
    job = await store.jobs.insert(a_job(**(REQUEST | more)), actor="ann")
    await store.departures.add(job)
    return job


async def take(store: AStore, *, ended_within_seconds: float = AT_ANY_TIME, **more: Any) -> str | None:
    """Take the job that a caller of an equal request has left, and return its id."""
    job = await store.departures.take(a_job(**(REQUEST | more)), ended_within_seconds=ended_within_seconds)
    return job and job.id


async def test_each_departure_is_returned_once_the_newest_first_in_any_process(store: AStore, other: AStore) -> None:
    assert await take(store) is None
    jobs = [await left(store) for _ in range(2)]
    await store.departures.add(jobs[0])
    assert [await take(other), await take(store), await take(other)] == [jobs[1].id, jobs[0].id, None]
    # whose caller returns and leaves again
    await other.departures.add(jobs[0])
    assert await take(store) == jobs[0].id


@pytest.mark.parametrize("other_request", [{"user_id": 1}, {"token_id": 1}, {"fingerprint": "g"}], ids=str)
async def test_a_departure_belongs_to_one_user_token_and_request(store: AStore, other_request: dict[str, Any]) -> None:
    job = await left(store)
    assert await take(store, **other_request) is None
    assert await take(store) == job.id


async def test_a_caller_who_waits_has_left_once_that_is_not_renewed(store: AStore, other: AStore) -> None:
    jobs = [await store.jobs.insert(a_job(**REQUEST), actor="ann") for _ in range(2)]
    ids = [job.id for job in jobs]
    await store.departures.renew(jobs, 600)
    assert await take(other) is None
    assert await other.departures.left_at(ids) == {}
    # a process that was killed renews nothing
    await store.departures.renew(jobs[:1], -600)
    left_at = await other.departures.left_at([*ids, "missing"])
    assert list(left_at) == ids[:1]
    assert left_at[ids[0]] < jobs[0].created_at
    assert [await take(other), await take(store)] == [ids[0], None]
    # the caller of the other one leaves, or gets the answer
    await other.departures.add(jobs[1])
    await other.departures.remove(ids[1])
    assert await take(store) is None
    await store.departures.remove("missing")


async def test_of_callers_who_return_at_once_one_gets_the_job(store: AStore, other: AStore) -> None:
    job = await left(store)
    ids = await asyncio.gather(*(take(each) for each in (store, other) * 4))
    assert sorted(ids, key=str) == sorted([job.id, *[None] * 7], key=str)


async def test_a_job_that_has_ended_is_returned_as_it_ended_for_a_time(store: AStore) -> None:
    job = await left(store)
    await store.jobs.transition(job.id, a_step("cancel"))
    assert await take(store, ended_within_seconds=-1) is None
    departed = await store.departures.take(a_job(**REQUEST), ended_within_seconds=AT_ANY_TIME)
    assert departed is not None
    assert (departed.id, departed.status) == (job.id, "fail")


async def test_a_purged_job_has_no_departure(store: AStore) -> None:
    job = await left(store)
    await store.jobs.transition(job.id, a_step("cancel"))
    await store.jobs.purge(-1, 10)
    assert await take(store) is None
    # nor has a job that was never stored
    await store.departures.add(a_job(**REQUEST))
    assert await take(store) is None
