"""Contract tests of stores: objects at upstreams, who created them, and the marks of those under review."""

from __future__ import annotations

import pytest

from signoff.core.job import Decision, Verdict
from signoff.core.reviews.policy import JobPolicy
from support.stores import AStore, a_call, a_job, a_step, leased

pytestmark = pytest.mark.anyio

RESPONSE = "resp_00000000000000000001"
MESSAGE = "msg_00000000000000000000001"
CONTAINER = "cntr_0000000000000000000001"
ANSWER = f'{{"id":"{RESPONSE}","output":[{{"id":"{MESSAGE}"}},{{"container_id": "{CONTAINER}"}}]}}'.encode()
MADE = {"response": ANSWER, "upstream_object_id": RESPONSE, "path": "/v1/responses"}


async def test_the_creator_of_an_object_and_of_the_parts_of_an_answer_is_known(store: AStore, other: AStore) -> None:
    call = a_call(**MADE, user_id=7)
    await (await store.jobs.log_call(call, actor="a", verbs=["submit", "claim", "succeed"], at_once=True))
    for each in (store, other):
        creators = await each.objects.creators([RESPONSE, MESSAGE, CONTAINER, "msg_of_nobody_at_all_000000"])
        assert {object_id: job.id for object_id, job in creators.items()} == dict.fromkeys(
            (RESPONSE, MESSAGE, CONTAINER), call.id
        )
        assert {job.user_id for job in creators.values()} == {7}


async def test_a_held_answer_has_its_parts_too_and_the_first_creator_counts(store: AStore) -> None:
    job = await leased(store, path="/v1/responses", policy=JobPolicy(review="always"))
    changes = {"response": ANSWER, "upstream_object_id": RESPONSE}
    await store.jobs.transition(job.id, a_step("hold", lease=job.lease, changes=changes))
    later = a_job(status="success", **MADE)
    await store.jobs.insert_ended(later, actor="a", verbs=["submit", "claim", "succeed"])
    creators = await store.objects.creators([MESSAGE, RESPONSE])
    assert {each.id for each in creators.values()} == {job.id}
    assert creators[MESSAGE].status == "human"


@pytest.mark.parametrize("verdict", ["redo", "approve"])
async def test_an_answer_that_was_sent_back_or_edited_is_still_known_by_its_objects(
    store: AStore, verdict: Verdict
) -> None:
    job = await leased(store, path="/v1/responses", policy=JobPolicy(review="always"))
    changes = {"response": ANSWER, "upstream_object_id": RESPONSE}
    await store.jobs.transition(job.id, a_step("hold", changes=changes))
    decision = Decision(verdict=verdict, reviewer="ann")
    decide = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision)
    second = {"response": b'{"id":"resp_00000000000000000002"}', "upstream_object_id": "resp_00000000000000000002"}
    if verdict == "redo":
        again = a_step("redo", changes={"attempt": 0}, after_seconds={"due_at": 0.0})
        await store.jobs.transition(job.id, decide, again)
        [claimed] = await store.jobs.claim(actor="worker", lease="mine", limit=1, lease_seconds=60)
        await store.jobs.transition(claimed.id, a_step("hold", changes=second))
    else:
        await store.jobs.transition(job.id, decide, a_step("approve", changes={"response": b'"Nothing."'}))
    creators = await store.objects.creators([RESPONSE, MESSAGE, CONTAINER])
    assert {object_id: creator.id for object_id, creator in creators.items()} == dict.fromkeys(
        (RESPONSE, MESSAGE, CONTAINER), job.id
    )


async def test_an_id_that_the_request_names_has_no_new_creator(store: AStore) -> None:
    call = a_call(**MADE, body=f'{{"input":[{{"id":"{MESSAGE}"}}]}}'.encode())
    await (await store.jobs.log_call(call, actor="a", verbs=["submit", "claim", "succeed"], at_once=True))
    assert {*await store.objects.creators([MESSAGE, CONTAINER])} == {CONTAINER}


async def test_a_deleted_job_is_the_creator_of_nothing(store: AStore) -> None:
    await store.jobs.insert_ended(a_job(status="success", **MADE), actor="a", verbs=["submit", "claim", "succeed"])
    call = a_call(response=ANSWER.replace(b"1", b"2"), upstream_object_id="resp_2")
    await (await store.jobs.log_call(call, actor="a", verbs=["submit", "claim", "succeed"], at_once=True))
    ids = [RESPONSE, MESSAGE, MESSAGE.replace("1", "2"), "resp_2"]
    assert len(await store.objects.creators(ids)) == 4
    assert await store.jobs.purge(-1, 10) == 2
    assert await store.objects.creators(ids) == {}


async def test_a_mark_is_seen_by_every_process_and_set_once(store: AStore, other: AStore) -> None:
    assert await store.objects.held(["conv_1", "conv_2"]) == set()
    await store.objects.hold(["conv_1", "conv_3"])
    await other.objects.hold(["conv_3", "conv_1"])
    for each in (store, other):
        assert await each.objects.held(["conv_1", "conv_2", "conv_3"]) == {"conv_1", "conv_3"}


async def test_there_may_be_any_number_of_ids(store: AStore) -> None:
    ids = [f"conv_{number}" for number in range(2500)]
    await store.objects.hold(ids)
    assert await store.objects.held(ids) == {*ids}
    assert await store.objects.creators(ids) == {}
