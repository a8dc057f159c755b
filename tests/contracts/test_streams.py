"""Contract tests of stores: streams, their leaders, and claims that skip full models."""

from __future__ import annotations

import pytest

from signoff.core.delivery import DeliveryTarget
from signoff.core.job import JobError
from signoff.core.stream import Stream
from signoff.core.turn import Turn
from signoff.errors import NameTaken
from support.stores import AStore, a_job, inserted, together

pytestmark = pytest.mark.anyio


def a_stream(name: str, **more: object) -> Stream:
    """Return a stream; `more` overrides its fields."""
    defaults = {"scheme": "amqp", "host": "h:1", "sealed": b"\x00sealed", "requests": "in", "responses": "out"}
    return Stream(name=name, **(defaults | more))  # type: ignore[arg-type]


async def test_streams_are_put_replaced_and_dropped_by_name(store: AStore, other: AStore) -> None:
    one, two = a_stream("one", user="ann@example.com"), a_stream("two")
    await store.streams.put(two)
    await store.streams.put(a_stream("one", requests="before"), is_new=True)
    with pytest.raises(NameTaken):
        await store.streams.put(one, is_new=True)
    await store.streams.put(one)

    assert await other.streams.all() == [one, two]
    assert await store.streams.drop("one") is True
    assert await store.streams.drop("one") is False
    assert await other.streams.all() == [two]


async def test_of_concurrent_candidates_one_becomes_the_leader(store: AStore, other: AStore) -> None:
    calls = [each.streams.acquire_lead("s", f"{number}", 60) for number in range(5) for each in (store, other)]
    outcomes = await together(calls)
    # both stores asked for each name: one name leads, perhaps through both stores
    assert 1 <= sum(outcomes) <= 2
    leader = str(outcomes.index(True) // 2)
    assert [await other.streams.acquire_lead("s", str(number), 60) for number in range(5)] == [
        str(number) == leader for number in range(5)
    ]


async def test_a_leader_leads_until_it_releases_the_lead_or_its_lease_expires(store: AStore, other: AStore) -> None:
    assert await store.streams.acquire_lead("s", "one", 60)
    assert not await other.streams.acquire_lead("s", "two", 60)
    assert await other.streams.acquire_lead("another", "two", 60)
    await other.streams.release_lead("s", "two")  # a process that does not lead releases nothing
    assert not await other.streams.acquire_lead("s", "two", 60)
    await store.streams.release_lead("s", "one")
    assert await other.streams.acquire_lead("s", "two", -1)
    assert await store.streams.acquire_lead("s", "one", 60)


async def test_a_claim_skips_the_models_that_are_full(store: AStore) -> None:
    for number, model in enumerate(("hangs", "free", "hangs", "free")):
        await inserted(store, target=f"{model}-{number}", model=model)
    urgent = await inserted(store, target="hangs-4", model="hangs", priority=9)

    turn = Turn(full_models=("hangs", "other"))
    claimed = await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60, turn=turn)
    assert [job.model for job in claimed] == ["free", "free"]
    claimed = await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60)
    assert [job.id for job in claimed] == [urgent.id]
    claimed = await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60)
    assert [job.model for job in claimed] == ["hangs"] * 2


async def test_a_job_inserted_as_failed_has_its_delivery_in_the_same_transaction(store: AStore) -> None:
    error = JobError(code="bad_request", message="No.", status=400)
    job = a_job(
        status="fail", error=error, client_id="mine", deliver=(DeliveryTarget(kind="topic", address="one", host="one"),)
    )
    stored = await store.jobs.insert(job, actor="user:ann", verb="refuse")
    assert (stored.status, stored.error) == ("fail", error)

    [event] = await store.jobs.events(stored.id)
    assert (event.verb, event.data["status"]) == ("refuse", "fail")
    [delivery] = await store.deliveries.of_job(stored.id)
    assert (delivery.id, delivery.kind, delivery.address, delivery.state) == (
        f"msg_{stored.id}_topic",
        "topic",
        "one",
        "due",
    )
    # and inserting it again returns the same job
    again = await store.jobs.insert(a_job(client_id="mine", status="fail", error=error), actor="user:ann")
    assert again.id == stored.id
    assert await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60) == []
