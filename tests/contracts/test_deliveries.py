"""Deliveries in every store: made with the end of a job, leased by one sender, settled by whoever holds the lease."""

from typing import Any

import pytest

from signoff.core.delivery import Delivery, DeliveryOutcome, DeliveryTarget
from signoff.core.job import Decision, JobError
from signoff.errors import NotFound, Stale
from support.stores import ANSWER, AStore, Ear, a_job, a_step, held, inserted, leased, together

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
SEALED = b"sealed, and nobody's business"
TO = DeliveryTarget(address="https://example.com/hook", host="example.com", sealed=SEALED)
REFUSED = JobError(code="rejected", message="No.", status=403)
APPROVED = Decision(verdict="approve", reviewer="ann")


# How they come about


async def test_a_job_keeps_where_its_end_is_told_and_no_event_does(store: AStore) -> None:
    job = await inserted(store, deliver=(TO,))

    assert job.deliver == (TO,)
    assert await store.jobs.get(job.id) == job
    assert "deliver" not in (await store.jobs.events(job.id))[0].data


@pytest.mark.parametrize(("verb", "changes"), [("succeed", {"response": ANSWER}), ("fail", {"error": REFUSED})])
async def test_the_move_that_ends_a_job_makes_its_delivery(store: AStore, verb: str, changes: dict[str, Any]) -> None:
    ear = Ear(store)
    job = await leased(store, deliver=(TO,))
    assert await store.deliveries.of_job(job.id) == []

    ended = await store.jobs.transition(job.id, a_step(verb, changes=changes))

    [delivery] = await store.deliveries.of_job(job.id)
    assert (delivery.state, delivery.attempt, delivery.due_at) == ("due", 0, ended.updated_at)
    assert (delivery.address, delivery.host, delivery.kind) == (TO.address, TO.host, TO.kind)
    await ear.hears(("delivery", "webhook"))


async def test_a_held_job_has_a_delivery_from_its_verdict_on_and_no_sooner(store: AStore) -> None:
    job = await held(store, deliver=(TO,))
    assert await store.deliveries.of_job(job.id) == []

    decide = a_step("decide", changes={"decision": APPROVED}, after_seconds={"release_at": 0}, decision=APPROVED)
    await store.jobs.transition(job.id, decide, a_step("approve"))

    assert len(await store.deliveries.of_job(job.id)) == 1


async def test_a_cancelled_job_has_none(store: AStore) -> None:
    for job in (
        await inserted(store, deliver=(TO,)),
        await leased(store, deliver=(TO,)),
        await held(store, deliver=(TO,)),
    ):
        await store.jobs.transition(job.id, a_step("cancel", changes={"error": REFUSED}))
        assert await store.deliveries.of_job(job.id) == []


async def test_a_lapsed_job_that_fails_has_one(store: AStore) -> None:
    job = await inserted(store, deliver=(TO,), lease="mine", lease_seconds=-1)
    await store.jobs.transition(job.id, a_step("lapse", to="fail", changes={"error": REFUSED}))
    assert len(await store.deliveries.of_job(job.id)) == 1


async def test_a_job_that_ran_its_course_before_it_was_written_has_one_unless_it_was_cancelled(store: AStore) -> None:
    done = a_job(status="success", response=ANSWER, deliver=(TO,))
    left = a_job(status="fail", error=REFUSED, deliver=(TO,))
    await (await store.jobs.insert_ended(done, actor="test", verbs=["submit", "claim", "succeed"]))
    await (await store.jobs.insert_ended(left, actor="test", verbs=["submit", "claim", "cancel"]))
    assert len(await store.deliveries.of_job(done.id)) == 1
    assert await store.deliveries.of_job(left.id) == []


async def test_a_job_that_nobody_is_told_of_has_none(store: AStore) -> None:
    job = await leased(store)
    await store.jobs.transition(job.id, a_step("succeed"))
    assert await store.deliveries.of_job(job.id) == []


async def test_a_refused_move_makes_none(store: AStore) -> None:
    job = await leased(store, deliver=(TO,))
    with pytest.raises(Stale):
        await store.jobs.transition(job.id, a_step("succeed", lease="another's"))
    assert await store.deliveries.of_job(job.id) == []


# How they are leased


async def test_a_claim_leases_what_is_due_the_longest_due_first(store: AStore) -> None:
    first, second, third = [await due(store, f"host-{number}") for number in range(3)]

    taken = await claim(store, limit=2)

    assert [delivery.id for delivery in taken] == [first.id, second.id]
    assert {(delivery.attempt, delivery.lease) for delivery in taken} == {(1, "mine")}
    assert [delivery.id for delivery in await claim(store)] == [third.id]
    assert await claim(store) == []


async def test_a_claim_takes_one_kind_and_leaves_the_others(store: AStore) -> None:
    both = (TO, DeliveryTarget(kind="redis", address="signoff:1", host="redis"))
    job = await leased(store, deliver=both)
    await store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER}))
    made = await store.deliveries.of_job(job.id)
    assert [(one.kind, one.address) for one in made] == [(to.kind, to.address) for to in both]
    assert len({one.id for one in made}) == 2

    assert [one.kind for one in await claim(store, kind="redis")] == ["redis"]
    assert await claim(store, kind="redis") == []
    assert [one.kind for one in await claim(store)] == ["webhook"]


async def test_two_senders_never_hold_one_delivery_at_once(store: AStore, other: AStore) -> None:
    made = {(await due(store, f"host-{number}")).id for number in range(30)}

    taken = await together(claim([store, other][turn % 2], limit=4) for turn in range(20))

    ids = [delivery.id for page in taken for delivery in page]
    assert len(ids) == len(set(ids))
    ids += [delivery.id for _ in range(10) for delivery in await claim(other, limit=4)]
    assert sorted(ids) == sorted(made)


async def test_one_host_gets_its_share_and_stalls_nobody(store: AStore) -> None:
    slow = [await due(store, "slow") for _ in range(250)]
    quick = await due(store, "quick")

    taken = await claim(store, limit=16, limit_per_host=4)
    assert [delivery.id for delivery in taken] == [delivery.id for delivery in slow[:4]]
    assert [one.id for one in await claim(store, limit_per_host=4, busy={"slow": 4})] == [quick.id]
    assert [one.id for one in await claim(store, limit_per_host=4, busy={"slow": 3})] == [slow[4].id]


async def test_a_lease_that_ran_out_is_anybodys_and_its_late_holder_changes_nothing(store: AStore) -> None:
    made = await due(store)
    await claim(store, lease="first", lease_seconds=-1)

    [again] = await claim(store, lease="second")

    assert (again.id, again.attempt) == (made.id, 2)
    assert await store.deliveries.settle(made.id, "first", DeliveryOutcome(state="done")) is False
    assert await store.deliveries.get(made.id) == again
    assert await store.deliveries.settle(made.id, "second", DeliveryOutcome(state="done")) is True


# What becomes of them


async def test_a_done_one_rests(store: AStore) -> None:
    settled = await settled_as(store, DeliveryOutcome(state="done", status=204))

    assert (settled.state, settled.last_status, settled.last_error, settled.lease) == ("done", 204, None, None)
    assert settled.done_at is not None
    assert await claim(store) == []
    assert await store.deliveries.failed(10) == []


async def test_one_that_goes_on_is_due_later(store: AStore) -> None:
    settled = await settled_as(store, DeliveryOutcome(state="due", status=500, error="Oh.", after_seconds=60))

    assert (settled.state, settled.attempt, settled.last_status, settled.last_error) == ("due", 1, 500, "Oh.")
    assert settled.due_at >= settled.created_at + 60 * SECOND
    assert settled.done_at is None
    assert await claim(store) == []


async def test_one_that_is_given_back_is_due_as_if_nobody_had_tried(store: AStore) -> None:
    before = await settled_as(store, DeliveryOutcome(state="due", status=500, error="Oh."))
    await claim(store)
    await store.deliveries.settle(before.id, "mine", DeliveryOutcome(state="due", counts=False))

    after = await store.deliveries.get(before.id)
    assert after is not None
    assert (after.attempt, after.last_status, after.last_error) == (1, 500, "Oh.")
    assert [delivery.id for delivery in await claim(store)] == [before.id]


async def test_those_that_were_given_up_are_listed_the_latest_first(store: AStore) -> None:
    first = await settled_as(store, DeliveryOutcome(state="failed", status=410, error="Gone."))
    second = await settled_as(store, DeliveryOutcome(state="failed", error="Nobody."))

    assert await store.deliveries.failed(10) == [second, first]
    assert await store.deliveries.failed(1) == [second]
    assert await claim(store) == []


@pytest.mark.parametrize("state", ["done", "failed", "due"])
async def test_one_that_is_sent_again_is_due_under_its_old_id(store: AStore, state: Any) -> None:
    ear = Ear(store)
    before = await settled_as(store, DeliveryOutcome(state=state, after_seconds=60))

    again = await store.deliveries.redeliver(before.id)

    assert (again.id, again.state, again.attempt, again.done_at) == (before.id, "due", 0, None)
    assert [delivery.id for delivery in await claim(store)] == [before.id]
    await ear.hears(("delivery", "webhook"))


async def test_one_that_is_under_way_or_unknown_is_not_sent_again(store: AStore) -> None:
    made = await due(store)
    [taken] = await claim(store)
    with pytest.raises(Stale):
        await store.deliveries.redeliver(made.id)
    with pytest.raises(NotFound):
        await store.deliveries.redeliver("nobody")
    assert await store.deliveries.get("nobody") is None
    assert await store.deliveries.get(made.id) == taken


async def due(store: AStore, host: str = "example.com") -> Delivery:
    """The delivery of a job that has just ended."""
    job = await leased(store, deliver=(DeliveryTarget(address=f"https://{host}/", host=host),))
    await store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER}))
    [delivery] = await store.deliveries.of_job(job.id)
    return delivery


async def claim(store: AStore, **more: Any) -> list[Delivery]:
    """What a sender gets that holds the lease `mine`, unless `more` says otherwise."""
    plain: dict[str, Any] = {
        "kind": "webhook",
        "lease": "mine",
        "limit": 16,
        "limit_per_host": 16,
        "busy": {},
        "lease_seconds": 60,
    }
    return await store.deliveries.claim(**(plain | more))


async def settled_as(store: AStore, outcome: DeliveryOutcome) -> Delivery:
    """A delivery after its first attempt."""
    made = await due(store)
    assert [delivery.id for delivery in await claim(store)] == [made.id]
    assert await store.deliveries.settle(made.id, "mine", outcome)
    found = await store.deliveries.get(made.id)
    assert found is not None
    return found
