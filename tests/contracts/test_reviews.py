"""Contract tests of stores: held answers in the order of the desk, votes, queues, bulk decisions and digests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from signoff.core.audit import AuditFilter
from signoff.core.job import Decision, Edit, Job, Verdict
from signoff.core.reviews.bulk import Bulk, BulkItem, BulkState
from signoff.core.reviews.notices import Notice, NoticeOutcome
from signoff.core.reviews.queues import (
    NextReview,
    ReviewFilter,
    ReviewOrder,
    ReviewQueue,
    format_cursor,
    parse_cursor,
    place_of,
    rank_of,
)
from signoff.errors import Stale
from signoff.stores.schema import jobs
from support.stores import AStore, a_step, execute, held, together

pytestmark = pytest.mark.anyio
HOUR_US = 3600 * 1_000_000


async def on_desk(store: AStore, *, seconds: float | None = None, **columns: Any) -> Job:
    """Insert a held job with these columns, with a review deadline in `seconds`."""
    job = await held(store, **{name: columns.pop(name) for name in ("user_id", "target") if name in columns})
    after = {"held_at": 0.0} | ({} if seconds is None else {"review_deadline": seconds})
    request = a_step("draft", round=job.round, changes={"draft": None} | columns, after_seconds=after)
    return await store.jobs.transition(job.id, request)


async def take(store: AStore, reviewer: str = "ann", **more: Any) -> str | None:
    """Return the id of the next answer for a reviewer."""
    query = NextReview(**{"reviewer": reviewer, "queues": ("",)} | more)
    job = await store.reviews.open_next(query, actor=f"user:{reviewer}", lease_seconds=60)
    return None if job is None else job.id


async def test_the_next_answer_is_by_priority_then_by_deadline_then_by_age(store: AStore) -> None:
    old, new = await on_desk(store, review_priority=5), await on_desk(store, review_priority=5)
    late = await on_desk(store, review_priority=5, seconds=3600)
    soon = await on_desk(store, review_priority=5, seconds=60)
    urgent = await on_desk(store, review_priority=9)
    unset = await on_desk(store, review_priority=None)  # 5 is the priority of the job itself

    assert [await take(store) for _ in range(7)] == [*(job.id for job in (urgent, soon, late, old, new, unset)), None]


async def test_an_answer_that_is_taken_has_a_lease_and_an_event(store: AStore) -> None:
    job = await on_desk(store)

    assert await take(store) == job.id

    taken = await store.jobs.get(job.id)
    assert taken is not None
    assert taken.review_lease == "ann"
    assert taken.review_lease_until == taken.updated_at + 60_000_000
    last = (await store.jobs.events(job.id))[-1]
    assert (last.verb, last.actor, last.data["review_lease"]) == ("open", "user:ann", "ann")


async def test_an_answer_whose_lease_has_ended_is_taken_again(store: AStore) -> None:
    job = await on_desk(store)
    lease = {"review_lease": "bob"}
    await store.jobs.transition(
        job.id, a_step("open", reviewer="bob", changes=lease, after_seconds={"review_lease_until": -1})
    )

    assert await take(store) == job.id


async def test_an_assigned_answer_comes_first_for_its_reviewer_and_never_for_another(store: AStore) -> None:
    first = await on_desk(store, review_priority=9)
    bobs = await on_desk(store, review_priority=0, assignee="bob", review_queue="legal")

    assert await take(store, "bob") == bobs.id
    assert [await take(store), await take(store)] == [first.id, None]


async def test_a_reviewer_gets_answers_of_their_queues_alone(store: AStore) -> None:
    legal, everybodys = await on_desk(store, review_queue="legal"), await on_desk(store)

    assert await take(store, queues=("sales",)) is None
    assert await take(store, queues=("legal", "sales")) == legal.id
    assert await take(store, queues=("", "legal")) == everybodys.id


async def test_what_a_reviewer_asked_skips_or_has_voted_on_is_left_out(store: AStore) -> None:
    own, skipped = await on_desk(store, user_id=7), await on_desk(store)
    voted, left = await on_desk(store), await on_desk(store)
    vote = Decision(verdict="approve", reviewer="ann")
    await store.jobs.transition(voted.id, a_step("vote", seq=voted.seq, vote=vote))

    assert await take(store, not_user_id=7, skip=(skipped.id,)) == left.id
    assert await take(store, not_user_id=7, skip=(skipped.id,)) is None
    assert await take(store, "bob") == own.id
    assert [await take(store, "bob"), await take(store, "bob")] == [skipped.id, voted.id]


async def test_concurrent_reviewers_never_get_the_same_answer(store: AStore, other: AStore) -> None:
    held_jobs = {(await on_desk(store)).id for _ in range(40)}

    taken = await together(take(one, f"ann{number}") for number in range(24) for one in (store, other))

    job_ids = [job_id for job_id in taken if job_id is not None]
    assert len(job_ids) == len(set(job_ids)) == 40
    assert set(job_ids) == held_jobs
    assert taken.count(None) == 8


async def test_a_decided_answer_is_neither_taken_nor_listed(store: AStore) -> None:
    job = await on_desk(store)
    decision = Decision(verdict="approve", reviewer="bob")
    after = {"release_at": 60.0}
    await store.jobs.transition(
        job.id, a_step("decide", reviewer="bob", decision=decision, changes={"decision": decision}, after_seconds=after)
    )

    assert await take(store) is None
    assert await store.reviews.list(ReviewFilter(queues=("",))) == []


async def test_a_list_has_the_order_of_the_desk_on_every_page(store: AStore) -> None:
    held_jobs = [
        await on_desk(
            store, review_priority=number % 3, review_queue="legal" if number % 2 else None, seconds=number % 4 or None
        )
        for number in range(25)
    ]
    expected = [job.id for job in sorted(held_jobs, key=lambda job: (rank_of(job), job.id))]
    seen, after = list[str](), None
    while True:
        page = await store.reviews.list(ReviewFilter(queues=("", "legal"), after=after, limit=4))
        seen += [job.id for job in page]
        if not page.may_continue:
            break
        after = (rank_of(page[-1]), page[-1].id)
    assert seen == expected


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_a_list_by_the_time_of_the_hold_is_whole_on_every_page(store: AStore, order: ReviewOrder) -> None:
    together = [await on_desk(store, review_queue="legal" if number % 2 else None) for number in range(5)]
    await execute(store, sa.update(jobs).values(held_at=5))
    later = [await on_desk(store, review_queue="legal" if number % 2 else None) for number in range(4)]
    expected = sorted([(5, job.id) for job in together] + [(job.held_at or 0, job.id) for job in later])
    seen, after = list[tuple[int, str]](), None
    while True:
        page = await store.reviews.list(ReviewFilter(queues=("", "legal"), order=order, after=after, limit=2))
        seen += [(job.held_at or 0, job.id) for job in page]
        if not page.may_continue:
            break
        after = parse_cursor(format_cursor(*place_of(page[-1], order)))
    assert seen == (expected if order == "oldest" else expected[::-1])


async def test_a_list_is_filtered(store: AStore) -> None:
    plain, legal = await on_desk(store, target="echo"), await on_desk(store, review_queue="legal", target="other")
    anns = await on_desk(store, assignee="ann")
    await execute(store, sa.update(jobs).values(held_at=(plain.held_at or 0) - HOUR_US))
    young = await on_desk(store)

    async def listed(*queues: str, **more: Any) -> list[str]:
        return [job.id for job in await store.reviews.list(ReviewFilter(queues=queues, **more))]

    assert await listed("legal") == [legal.id]
    assert await listed("", "legal", target="other") == [legal.id]
    assert await listed("", "legal", assignee="ann") == [anns.id]
    assert set(await listed("", "legal", min_age_seconds=600)) == {plain.id, legal.id, anns.id}
    assert young.id in await listed("")


async def test_queues_with_held_answers_are_known_with_their_depth(store: AStore) -> None:
    first = await on_desk(store)
    for _ in range(3):
        await on_desk(store)
    await on_desk(store, review_queue="legal")
    await on_desk(store, review_queue="sales")

    assert await store.reviews.held_queues(10) == ["", "legal", "sales"]
    assert await store.reviews.held_queues(2) == ["", "legal"]
    assert await store.reviews.depth("", at_most=2) == (2, first.held_at)
    assert (await store.reviews.depth("legal", at_most=9))[0] == 1
    assert await store.reviews.depth("none", at_most=9) == (0, None)


async def test_a_vote_is_stale_if_the_job_has_changed(store: AStore) -> None:
    job = await on_desk(store)
    first, second = (Decision(verdict="reject", reviewer=name, reason="no") for name in ("ann", "bob"))

    voted = await store.jobs.transition(job.id, a_step("vote", seq=job.seq, vote=first))
    with pytest.raises(Stale):
        await store.jobs.transition(job.id, a_step("vote", seq=job.seq, reviewer="bob", vote=second))
    await store.jobs.transition(job.id, a_step("vote", seq=voted.seq, reviewer="bob", vote=second))

    votes = await store.reviews.votes(job.id, 1)
    assert [vote.decision for vote in votes] == [first, second]
    assert await store.reviews.votes(job.id, 2) == []
    assert {record.reviewer for record in await store.reviews.blind_votes(10)} == {"ann", "bob"}


async def test_a_refused_verdict_undoes_nothing_of_others_in_its_transaction(store: AStore) -> None:
    first, second = await on_desk(store), await on_desk(store)
    approval = Decision(verdict="approve", reviewer="ann")

    def decide(job: Job, reviewer: str) -> Coroutine[Any, Any, Job]:
        decision = msgspec.structs.replace(approval, reviewer=reviewer)
        changes, after = {"decision": decision}, {"release_at": 0.0}
        decided = a_step("decide", round=1, reviewer=reviewer, changes=changes, after_seconds=after, decision=decision)
        return store.jobs.transition(job.id, decided, a_step("approve", round=1))

    verdicts = [decide(first, "ann"), decide(first, "bob"), decide(second, "bob"), decide(second, "cy")]
    results = await asyncio.gather(*verdicts, return_exceptions=True)

    assert [isinstance(result, Stale) for result in results] == [False, True, False, True]
    assert "ann decided: approve" in str(results[1])
    assert "bob decided: approve" in str(results[3])
    assert [record.decision.reviewer for record in await store.reviews.decisions([first.id, second.id])] == [
        "ann",
        "bob",
    ]
    for job, reviewer in ((first, "ann"), (second, "bob")):
        assert [event.seq for event in await store.jobs.events(job.id)] == list(range(1, job.seq + 3))
        assert [vote.job_id for vote in await store.reviews.verdicts_of(reviewer, after=None, limit=9)] == [job.id]


async def test_two_processes_with_verdicts_on_the_same_answers_never_wait_for_each_other(
    store: AStore, other: AStore
) -> None:
    held_jobs = [await on_desk(store) for _ in range(40)]

    def decide(desk: AStore, job: Job, reviewer: str) -> Coroutine[Any, Any, Job]:
        decision = Decision(verdict="approve", reviewer=reviewer)
        request = a_step("decide", changes={"decision": decision}, after_seconds={"release_at": 9.0}, decision=decision)
        return desk.jobs.transition(job.id, request)

    verdicts = [decide(store, job, "ann") for job in held_jobs]
    verdicts += [decide(other, job, "bob") for job in reversed(held_jobs)]
    with capture_logs() as events:
        results = await asyncio.gather(*verdicts, return_exceptions=True)

    # one of the two counts for each answer, and the database had to end no transaction
    assert [isinstance(result, Stale) for result in results].count(True) == len(held_jobs)
    assert [event for event in events if "deadlock" in event.get("error", "")] == []


async def test_the_verdicts_of_a_reviewer_are_listed_newest_first(store: AStore) -> None:
    verdicts: list[Verdict] = ["approve", "reject", "redo"]
    for verdict in verdicts:
        decision = Decision(verdict=verdict, reviewer="ann", edit=Edit())
        job = await on_desk(store)
        request = a_step(
            "decide", decision=decision, changes={"decision": decision}, after_seconds={"release_at": 60.0}
        )
        await store.jobs.transition(job.id, request)

    newest = await store.reviews.verdicts_of("ann", after=None, limit=2)
    oldest = await store.reviews.verdicts_of("ann", after=(newest[-1].at, newest[-1].job_id), limit=2)

    assert [record.verdict for record in newest + oldest] == ["redo", "reject", "approve"]
    assert await store.reviews.verdicts_of("bob", after=None, limit=2) == []
    [decision_record] = await store.reviews.decisions([newest[0].job_id])
    assert (decision_record.round, decision_record.decision.verdict) == (1, "redo")


async def test_a_queue_is_stored_with_its_members_and_recorded(store: AStore) -> None:
    queue = ReviewQueue(name="legal", members=("ann", "bob"), sealed=b"amber", webhook_host="example.com")
    await store.review_queues.put(queue)
    await store.review_queues.put(ReviewQueue(name="sales", members=("ann",)))

    assert [each.name for each in await store.review_queues.all()] == ["legal", "sales"]
    assert await store.review_queues.get("legal") == queue
    assert await store.review_queues.of_member("ann") == ["legal", "sales"]
    await store.review_queues.put(ReviewQueue(name="legal", members=("cyd",)))
    assert await store.review_queues.of_member("bob") == []
    assert await store.review_queues.drop("legal") is True
    assert await store.review_queues.drop("legal") is False
    assert await store.review_queues.of_member("cyd") == []
    entries = await store.audit.page(AuditFilter(subject="review_queue:legal"))
    assert [entry.action for entry in entries] == [
        "review_queue_removed",
        "review_queue_changed",
        "review_queue_created",
    ]
    assert "amber" not in str(entries)


async def test_reasons_are_replaced_as_a_whole(store: AStore) -> None:
    assert await store.review_queues.reasons() == []
    await store.review_queues.put_reasons(["wrong", "rude"])
    await store.review_queues.put_reasons(["rude", "too long"])
    assert await store.review_queues.reasons() == ["rude", "too long"]


@pytest.mark.parametrize("loss", [{"active": False}, {"role": "user"}], ids=["disabled", "demoted"])
async def test_who_may_review_no_more_gives_everything_back(store: AStore, loss: dict[str, Any]) -> None:
    ann = await store.people.put_user("ann@example.com", "reviewer")
    assigned = await on_desk(store, assignee=ann.email)
    both = await on_desk(store, assignee=ann.email, review_lease=ann.email, review_lease_until=2**52)
    opened = await on_desk(store, review_lease=ann.email, review_lease_until=2**52)
    others = [
        await on_desk(store, assignee="cyd@example.com"),
        await on_desk(store, review_lease="cyd@example.com", review_lease_until=2**52),
    ]
    assert await take(store, "bob@example.com") is None
    await store.people.change_user(ann.id, role="admin")  # may still review
    assert await take(store, "bob@example.com") is None
    await store.people.put_user("ada@example.com", "admin")
    await store.people.change_user(ann.id, **loss)
    taken = {await take(store, "bob@example.com") for _ in range(4)}
    assert taken == {assigned.id, both.id, opened.id, None}
    assert [event.verb for event in await store.jobs.events(both.id)][-2:] == ["assign", "open"]
    assert [event.verb for event in await store.jobs.events(opened.id)][-2:] == ["leave", "open"]
    assert [await store.jobs.get(job.id) for job in others] == others


async def test_states_of_a_bulk_decision_only_advance(store: AStore, other: AStore) -> None:
    def bulk_of(first: BulkState, second: BulkState, message: str | None = None) -> Bulk:
        items = (
            BulkItem(job_id="j", round=1, state=first),
            BulkItem(job_id="k", round=1, state=second, message=message),
        )
        return Bulk(id="b1", reviewer="ann", verdict="approve", reason=None, items=items)

    selected = bulk_of("selected", "selected")
    await store.reviews.add_bulk(selected)
    assert await store.reviews.bulk("b1") == selected
    assert await store.reviews.bulk("b2") is None
    # two calls at the same moment, each of which has seen the selection alone
    applied, undone = bulk_of("decided", "decided"), bulk_of("undone", "selected")
    await together([store.reviews.advance_bulk(applied), other.reviews.advance_bulk(undone)])
    assert await store.reviews.bulk("b1") == bulk_of("undone", "decided")
    assert await store.reviews.advance_bulk(bulk_of("skipped", "skipped", "late")) == bulk_of("undone", "decided")
    failed = bulk_of("decided", "decided", "gone")
    assert await store.reviews.advance_bulk(failed) == bulk_of("undone", "decided", "gone")


async def test_a_digest_reports_each_answer_once(store: AStore, other: AStore) -> None:
    before = await on_desk(store, review_queue="legal")
    await store.review_queues.put(ReviewQueue(name="legal", emails=("ann@example.com",), digest_seconds=3600))
    await store.review_queues.put(ReviewQueue(name="quiet"))
    job = await on_desk(store, review_queue="legal")
    assert await store.review_queues.news(lag_seconds=0) == []  # an hour has not passed
    await set_digest(store)

    [news] = await store.review_queues.news(lag_seconds=0)
    assert [item.job_id for item in news.new] == [job.id]
    assert before.id not in str(news)
    notice = Notice(id="n1", queue="legal", kind="email", body=b"{}")
    added = await together(one.review_queues.add_notices(news, [notice]) for one in (store, other))
    assert sorted(added) == [False, True]
    assert all(not later.new for later in await store.review_queues.news(lag_seconds=0))


async def set_digest(store: AStore) -> None:
    """Let the next digest of the queue be due at once."""
    queue = ReviewQueue(name="legal", emails=("ann@example.com",), digest_seconds=0)
    await store.review_queues.put(queue)


async def test_a_digest_is_sent_again_until_it_is_settled(store: AStore) -> None:
    await store.review_queues.put(ReviewQueue(name="legal", emails=("ann@example.com",), digest_seconds=0))
    await on_desk(store, review_queue="legal")
    [news] = await store.review_queues.news(lag_seconds=0)
    assert await store.review_queues.add_notices(news, [Notice(id="n1", queue="legal", kind="email", body=b"{}")])

    [claimed] = await store.review_queues.claim_notices(lease="l1", limit=5, lease_seconds=-1)
    assert claimed.attempt == 1
    [again] = await store.review_queues.claim_notices(lease="l2", limit=5, lease_seconds=60)
    assert again.attempt == 2
    assert await store.review_queues.claim_notices(lease="l3", limit=5, lease_seconds=60) == []
    await store.review_queues.settle_notice("n1", "l1", NoticeOutcome())  # an old lease changes nothing
    await store.review_queues.settle_notice("n1", "l2", NoticeOutcome(after_seconds=0))
    [third] = await store.review_queues.claim_notices(lease="l4", limit=5, lease_seconds=-1)
    assert third.attempt == 3
    await store.review_queues.settle_notice("n1", "l4", NoticeOutcome())
    assert await store.review_queues.claim_notices(lease="l5", limit=5, lease_seconds=60) == []
