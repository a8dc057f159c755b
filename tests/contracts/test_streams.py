"""What every store keeps of streams, and what it does for them: who leads, which targets are passed over."""

from __future__ import annotations

import pytest

from signoff.core.delivery import DeliveryTarget
from signoff.core.job import JobError
from signoff.core.stream import Stream
from support.stores import AStore, a_job, inserted, together

pytestmark = pytest.mark.anyio


def a_stream(name: str, **more: object) -> Stream:
    """A stream."""
    plain = {"scheme": "amqp", "host": "h:1", "sealed": b"\x00sealed", "requests": "in", "responses": "out"}
    return Stream(name=name, **(plain | more))  # type: ignore[arg-type]


async def test_streams_are_put_replaced_and_dropped_by_name(store: AStore, other: AStore) -> None:
    one, two = a_stream("one", user="ann@example.com"), a_stream("two")
    await store.streams.put(two)
    await store.streams.put(a_stream("one", requests="before"))
    await store.streams.put(one)

    assert await other.streams.all() == [one, two]
    assert await store.streams.drop("one") is True
    assert await store.streams.drop("one") is False
    assert await other.streams.all() == [two]


async def test_of_all_who_would_lead_at_once_one_does(store: AStore, other: AStore) -> None:
    leads = [place.streams.acquire_lead("s", f"{number}", 60) for number in range(5) for place in (store, other)]
    led = await together(leads)
    # both asked in the name of each: one of them leads, under either hand
    assert 1 <= sum(led) <= 2
    leader = str(led.index(True) // 2)
    assert [await other.streams.acquire_lead("s", str(number), 60) for number in range(5)] == [
        str(number) == leader for number in range(5)
    ]


async def test_a_leader_leads_until_it_yields_or_its_time_is_over(store: AStore, other: AStore) -> None:
    assert await store.streams.acquire_lead("s", "one", 60)
    assert not await other.streams.acquire_lead("s", "two", 60)
    assert await other.streams.acquire_lead("another", "two", 60)
    await other.streams.release_lead("s", "two")  # who does not lead yields nothing
    assert not await other.streams.acquire_lead("s", "two", 60)
    await store.streams.release_lead("s", "one")
    assert await other.streams.acquire_lead("s", "two", -1)
    assert await store.streams.acquire_lead("s", "one", 60)


async def test_a_claim_passes_over_the_models_that_are_full(store: AStore) -> None:
    for number, model in enumerate(("hangs", "free", "hangs", "free")):
        await inserted(store, target=f"{model}-{number}", model=model)
    urgent = await inserted(store, target="hangs-4", model="hangs", priority=9)

    taken = await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60, full=["hangs", "other"])
    assert [job.model for job in taken] == ["free", "free"]
    taken = await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60)
    assert [job.model for job in taken] == ["hangs"] * 3
    assert taken[0].id == urgent.id


async def test_a_job_that_comes_in_ended_is_told_of_in_the_same_transaction(store: AStore) -> None:
    error = JobError(code="bad_request", message="No.", status=400)
    asked = a_job(
        status="fail", error=error, client_id="mine", deliver=(DeliveryTarget(kind="topic", address="one", host="one"),)
    )
    made = await store.jobs.insert(asked, actor="user:ann", verb="refuse")
    assert (made.status, made.error) == ("fail", error)

    [event] = await store.jobs.events(made.id)
    assert (event.verb, event.data["status"]) == ("refuse", "fail")
    [told] = await store.deliveries.of_job(made.id)
    assert (told.id, told.kind, told.address, told.state) == (f"msg_{made.id}_topic", "topic", "one", "due")
    # and it is one however often it comes
    again = await store.jobs.insert(a_job(client_id="mine", status="fail", error=error), actor="user:ann")
    assert again.id == made.id
    assert await store.jobs.claim(actor="w", lease="l", limit=10, lease_seconds=60) == []
