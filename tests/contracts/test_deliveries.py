"""Contract tests of stores: deliveries are created when a job ends, leased by one dispatcher, and settled by it."""

from typing import Any

import pytest

from signoff.core.delivery import Delivery, DeliveryOutcome, DeliveryTarget
from signoff.core.job import Decision, JobError
from signoff.errors import NotFound, Stale
from support.stores import ANSWER, AStore, ChangeRecorder, a_job, a_step, held, inserted, leased, together

pytestmark = pytest.mark.anyio

SECOND_US = 1_000_000
SEALED = b"sealed, and nobody's business"
TARGET = DeliveryTarget(address="https://example.com/hook", host="example.com", sealed=SEALED)
REFUSED = JobError(code="rejected", message="No.", status=403)
APPROVED = Decision(verdict="approve", reviewer="ann")


# Creation


async def test_the_delivery_targets_are_stored_with_the_job_and_in_no_event(store: AStore) -> None:
    job = await inserted(store, deliver=(TARGET,))

    assert job.deliver == (TARGET,)
    assert await store.jobs.get(job.id) == job
    assert "deliver" not in (await store.jobs.events(job.id))[0].data


@pytest.mark.parametrize(("verb", "changes"), [("succeed", {"response": ANSWER}), ("fail", {"error": REFUSED})])
async def test_the_transition_that_ends_a_job_creates_its_delivery(
    store: AStore, verb: str, changes: dict[str, Any]
) -> None:
    recorder = ChangeRecorder(store)
    job = await leased(store, deliver=(TARGET,))
    assert await store.deliveries.of_job(job.id) == []

    ended = await store.jobs.transition(job.id, a_step(verb, changes=changes))

    [delivery] = await store.deliveries.of_job(job.id)
    assert (delivery.state, delivery.attempt, delivery.due_at) == ("due", 0, ended.updated_at)
    assert (delivery.address, delivery.host, delivery.kind) == (TARGET.address, TARGET.host, TARGET.kind)
    await recorder.hears(("delivery", "webhook"))


async def test_a_held_job_has_a_delivery_only_after_its_verdict(store: AStore) -> None:
    job = await held(store, deliver=(TARGET,))
    assert await store.deliveries.of_job(job.id) == []

    decide = a_step("decide", changes={"decision": APPROVED}, after_seconds={"release_at": 0}, decision=APPROVED)
    await store.jobs.transition(job.id, decide, a_step("approve"))

    assert len(await store.deliveries.of_job(job.id)) == 1


async def test_a_cancelled_job_has_no_delivery(store: AStore) -> None:
    for job in (
        await inserted(store, deliver=(TARGET,)),
        await leased(store, deliver=(TARGET,)),
        await held(store, deliver=(TARGET,)),
    ):
        await store.jobs.transition(job.id, a_step("cancel", changes={"error": REFUSED}))
        assert await store.deliveries.of_job(job.id) == []


async def test_a_lapsed_job_that_fails_has_a_delivery(store: AStore) -> None:
    job = await inserted(store, deliver=(TARGET,), lease="mine", lease_seconds=-1)
    await store.jobs.transition(job.id, a_step("lapse", to="fail", changes={"error": REFUSED}))
    assert len(await store.deliveries.of_job(job.id)) == 1


async def test_a_job_inserted_as_ended_has_a_delivery_unless_it_was_cancelled(store: AStore) -> None:
    done = a_job(status="success", response=ANSWER, deliver=(TARGET,))
    cancelled = a_job(status="fail", error=REFUSED, deliver=(TARGET,))
    await store.jobs.insert_ended(done, actor="test", verbs=["submit", "claim", "succeed"])
    await store.jobs.insert_ended(cancelled, actor="test", verbs=["submit", "claim", "cancel"])
    assert len(await store.deliveries.of_job(done.id)) == 1
    assert await store.deliveries.of_job(cancelled.id) == []


async def test_a_job_without_delivery_targets_has_no_delivery(store: AStore) -> None:
    job = await leased(store)
    await store.jobs.transition(job.id, a_step("succeed"))
    assert await store.deliveries.of_job(job.id) == []


async def test_a_refused_transition_creates_no_delivery(store: AStore) -> None:
    job = await leased(store, deliver=(TARGET,))
    with pytest.raises(Stale):
        await store.jobs.transition(job.id, a_step("succeed", lease="another's"))
    assert await store.deliveries.of_job(job.id) == []


# Claims and leases


async def test_a_claim_leases_due_deliveries_in_the_order_of_their_due_times(store: AStore) -> None:
    first, second, third = [await due(store, f"host-{number}") for number in range(3)]

    claimed = await claim(store, limit=2)

    assert [delivery.id for delivery in claimed] == [first.id, second.id]
    assert {(delivery.attempt, delivery.lease) for delivery in claimed} == {(1, "mine")}
    assert [delivery.id for delivery in await claim(store)] == [third.id]
    assert await claim(store) == []


async def test_a_claim_takes_deliveries_of_one_kind_only(store: AStore) -> None:
    both = (TARGET, DeliveryTarget(kind="redis", address="signoff:1", host="redis"))
    job = await leased(store, deliver=both)
    await store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER}))
    deliveries = await store.deliveries.of_job(job.id)
    assert [(delivery.kind, delivery.address) for delivery in deliveries] == [
        (target.kind, target.address) for target in both
    ]
    assert len({delivery.id for delivery in deliveries}) == 2

    assert [delivery.kind for delivery in await claim(store, kind="redis")] == ["redis"]
    assert await claim(store, kind="redis") == []
    assert [delivery.kind for delivery in await claim(store)] == ["webhook"]


async def test_two_dispatchers_never_lease_the_same_delivery(store: AStore, other: AStore) -> None:
    due_ids = {(await due(store, f"host-{number}")).id for number in range(30)}

    claims = await together(claim([store, other][turn % 2], limit=4) for turn in range(20))

    ids = [delivery.id for page in claims for delivery in page]
    assert len(ids) == len(set(ids))
    ids += [delivery.id for _ in range(10) for delivery in await claim(other, limit=4)]
    assert sorted(ids) == sorted(due_ids)


async def test_a_slow_host_does_not_delay_deliveries_to_other_hosts(store: AStore) -> None:
    slow = [await due(store, "slow") for _ in range(250)]
    quick = await due(store, "quick")

    claimed = await claim(store, limit=16, limit_per_host=4)
    assert [delivery.id for delivery in claimed] == [delivery.id for delivery in slow[:4]]
    assert [delivery.id for delivery in await claim(store, limit_per_host=4, busy={"slow": 4})] == [quick.id]
    assert [delivery.id for delivery in await claim(store, limit_per_host=4, busy={"slow": 3})] == [slow[4].id]


async def test_an_expired_lease_can_be_claimed_and_its_old_holder_cannot_settle(store: AStore) -> None:
    delivery = await due(store)
    await claim(store, lease="first", lease_seconds=-1)

    [claimed] = await claim(store, lease="second")

    assert (claimed.id, claimed.attempt) == (delivery.id, 2)
    assert await store.deliveries.settle(delivery.id, "first", DeliveryOutcome(state="done")) is False
    assert await store.deliveries.get(delivery.id) == claimed
    assert await store.deliveries.settle(delivery.id, "second", DeliveryOutcome(state="done")) is True


# Outcomes


async def test_a_done_delivery_is_not_claimed_again(store: AStore) -> None:
    settled = await settled_as(store, DeliveryOutcome(state="done", status=204))

    assert (settled.state, settled.last_status, settled.last_error, settled.lease) == ("done", 204, None, None)
    assert settled.done_at is not None
    assert await claim(store) == []
    assert await store.deliveries.failed(10) == []


async def test_a_delivery_to_be_retried_is_due_later(store: AStore) -> None:
    settled = await settled_as(store, DeliveryOutcome(state="due", status=500, error="Oh.", after_seconds=60))

    assert (settled.state, settled.attempt, settled.last_status, settled.last_error) == ("due", 1, 500, "Oh.")
    assert settled.due_at >= settled.created_at + 60 * SECOND_US
    assert settled.done_at is None
    assert await claim(store) == []


async def test_an_attempt_that_does_not_count_leaves_the_delivery_unchanged(store: AStore) -> None:
    before = await settled_as(store, DeliveryOutcome(state="due", status=500, error="Oh."))
    await claim(store)
    await store.deliveries.settle(before.id, "mine", DeliveryOutcome(state="due", counts=False))

    after = await store.deliveries.get(before.id)
    assert after is not None
    assert (after.attempt, after.last_status, after.last_error) == (1, 500, "Oh.")
    assert [delivery.id for delivery in await claim(store)] == [before.id]


async def test_failed_deliveries_are_listed_newest_first(store: AStore) -> None:
    first = await settled_as(store, DeliveryOutcome(state="failed", status=410, error="Gone."))
    second = await settled_as(store, DeliveryOutcome(state="failed", error="Nobody."))

    assert await store.deliveries.failed(10) == [second, first]
    assert await store.deliveries.failed(1) == [second]
    assert await claim(store) == []


@pytest.mark.parametrize("state", ["done", "failed", "due"])
async def test_a_redelivery_keeps_the_id_of_its_delivery(store: AStore, state: Any) -> None:
    recorder = ChangeRecorder(store)
    before = await settled_as(store, DeliveryOutcome(state=state, after_seconds=60))

    redelivered = await store.deliveries.redeliver(before.id)

    assert (redelivered.id, redelivered.state, redelivered.attempt, redelivered.done_at) == (before.id, "due", 0, None)
    assert [delivery.id for delivery in await claim(store)] == [before.id]
    await recorder.hears(("delivery", "webhook"))


async def test_a_leased_or_unknown_delivery_cannot_be_redelivered(store: AStore) -> None:
    delivery = await due(store)
    [claimed] = await claim(store)
    with pytest.raises(Stale):
        await store.deliveries.redeliver(delivery.id)
    with pytest.raises(NotFound):
        await store.deliveries.redeliver("nobody")
    assert await store.deliveries.get("nobody") is None
    assert await store.deliveries.get(delivery.id) == claimed


# Depths


async def test_the_depth_counts_deliveries_that_are_neither_received_nor_given_up(store: AStore) -> None:
    assert await store.deliveries.depths(at_most=10) == []
    for _ in range(3):
        await due(store)
    [depth] = await store.deliveries.depths(at_most=10)
    assert (depth.kind, depth.pending, depth.overdue_seconds >= 0) == ("webhook", 3, True)
    [capped] = await store.deliveries.depths(at_most=2)
    assert capped.pending == 2
    one, two, three = await claim(store, limit=3)
    for delivery, outcome in (
        (one, DeliveryOutcome(state="done")),
        (two, DeliveryOutcome(state="failed")),
        (three, DeliveryOutcome(state="due", after_seconds=1000)),
    ):
        await store.deliveries.settle(delivery.id, "mine", outcome)
    [depth] = await store.deliveries.depths(at_most=10)
    assert (depth.pending, depth.overdue_seconds) == (1, 0)


async def due(store: AStore, host: str = "example.com") -> Delivery:
    """Return the delivery of a job that has just ended."""
    job = await leased(store, deliver=(DeliveryTarget(address=f"https://{host}/", host=host),))
    await store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER}))
    [delivery] = await store.deliveries.of_job(job.id)
    return delivery


async def claim(store: AStore, **more: Any) -> list[Delivery]:
    """Claim deliveries with the lease `mine`; `more` overrides the arguments."""
    defaults: dict[str, Any] = {
        "kind": "webhook",
        "lease": "mine",
        "limit": 16,
        "limit_per_host": 16,
        "busy": {},
        "lease_seconds": 60,
    }
    return await store.deliveries.claim(**(defaults | more))


async def settled_as(store: AStore, outcome: DeliveryOutcome) -> Delivery:
    """Return a delivery whose first attempt ended with `outcome`."""
    delivery = await due(store)
    assert [delivery.id for delivery in await claim(store)] == [delivery.id]
    assert await store.deliveries.settle(delivery.id, "mine", outcome)
    settled = await store.deliveries.get(delivery.id)
    assert settled is not None
    return settled
