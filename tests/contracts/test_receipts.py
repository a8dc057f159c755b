"""Contract tests of `records.Receipts`: each decision that takes effect has one receipt, and the chain holds."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from signoff.core.job import Decision, Draft, Edit, Job, Verdict
from signoff.core.reviews.figures import DecisionDetails, FigureQuery, FigureTotals
from signoff.core.reviews.receipt import (
    KeyReceipt,
    OpenTime,
    ReceiptVote,
    VerdictReceipt,
    parse_line,
    salted_digest,
)
from signoff.core.reviews.receipt_chain import BrokenChain, ChainVerifier
from signoff.core.reviews.ruling import Ruling
from signoff.errors import Conflict, Stale
from signoff.records import ReceiptFilter, StoredReceipt
from signoff.store import TransitionRequest
from signoff.stores.receipts_schema import receipts
from signoff.stores.sql import SqlStore
from signoff.work.reviews.desk import verdict_transition
from simulation.receipts import computed_figures
from support.stores import ANSWER, BODY, AStore, a_step, held, leased, opened, together

pytestmark = pytest.mark.anyio
EVERYTHING = ReceiptFilter(limit=10_000)


async def decided(store: AStore, job: Job, decision: Decision, *, round: int = 1) -> Job:  # noqa: A002
    """Give a verdict that takes effect at once."""
    return await store.jobs.transition(job.id, *steps(job, decision, round=round))


def steps(job: Job, decision: Decision, *, round: int = 1, seconds: float = 0) -> list[TransitionRequest]:  # noqa: A002
    decide = a_step(
        "decide",
        actor=f"user:{decision.reviewer}",
        reviewer=decision.reviewer,
        round=round,
        changes={"decision": decision},
        after_seconds={"release_at": seconds},
        decision=decision,
    )
    effect = verdict_transition(msgspec.structs.replace(job, round=round), decision, "sweeper")
    return [decide] if seconds else [decide, effect]


async def verdicts(store: AStore) -> list[tuple[VerdictReceipt, StoredReceipt]]:
    stored = await store.receipts.page(EVERYTHING)
    parsed = [(parse_line(row.line)[0], row) for row in stored]
    return [(receipt, row) for receipt, row in parsed if isinstance(receipt, VerdictReceipt)]


async def verified(store: AStore) -> ChainVerifier:
    """Verify all receipts against the first key and the head, as an auditor would."""
    head, stored = await store.receipts.head(), await store.receipts.page(EVERYTHING)
    first, _ = parse_line(stored[0].line)
    assert isinstance(first, KeyReceipt)
    chain = ChainVerifier([msgspec.json.decode(f'"{first.public_key}"', type=bytes)], head)
    for row in stored:
        chain.add(row.line)
    chain.finish()
    return chain


async def test_an_approved_answer_leaves_a_receipt_of_what_was_shown_and_released(store: AStore) -> None:
    job = await held(store, ruling=Ruling(outcome="hold", policy="careful", version=3))
    edit = Edit(response='{"choices":[]}')
    done = await decided(store, job, Decision(verdict="approve", reviewer="ann", reason="Typo.", edit=edit))
    [(receipt, row)] = await verdicts(store)
    assert row.salt is not None
    assert (receipt.job_id, receipt.round, receipt.verdict, receipt.reviewer) == (job.id, 1, "approve", "ann")
    assert (receipt.policy, receipt.policy_version, receipt.target) == ("careful", 3, "echo")
    assert receipt.votes == (ReceiptVote(reviewer="ann", verdict="approve"),)
    assert receipt.shown.input == salted_digest(row.salt, "input", BODY)
    assert receipt.shown.answer == salted_digest(row.salt, "answer", ANSWER)
    assert receipt.released == salted_digest(row.salt, "answer", done.response) != receipt.shown.answer
    assert receipt.edit == salted_digest(row.salt, "edit", msgspec.json.encode(edit))
    assert receipt.reason == salted_digest(row.salt, "reason", b"Typo.")
    assert receipt.at == done.updated_at
    await verified(store)


async def test_an_answer_that_is_released_unchanged_has_the_digest_of_the_one_that_was_shown(store: AStore) -> None:
    await decided(store, await held(store), Decision(verdict="approve", reviewer="ann"))
    [(receipt, _)] = await verdicts(store)
    assert receipt.released == receipt.shown.answer is not None
    assert (receipt.edit, receipt.reason) == (None, None)


async def test_a_verdict_leaves_no_receipt_before_it_takes_effect_or_after_it_was_withdrawn(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, *steps(job, Decision(verdict="reject", reviewer="ann"), seconds=3600))
    assert await verdicts(store) == []
    await store.jobs.transition(job.id, a_step("undo"))
    await decided(store, job, Decision(verdict="approve", reviewer="bob"), round=2)
    [(receipt, _)] = await verdicts(store)
    assert (receipt.round, receipt.verdict, receipt.reviewer) == (2, "approve", "bob")


async def test_a_stale_verdict_leaves_no_receipt(store: AStore) -> None:
    job = await held(store)
    await decided(store, job, Decision(verdict="reject", reviewer="ann"))
    with pytest.raises(Stale):
        await decided(store, job, Decision(verdict="approve", reviewer="bob"))
    assert [receipt.verdict for receipt, _ in await verdicts(store)] == ["reject"]


async def test_each_round_of_a_job_has_its_receipt(store: AStore) -> None:
    job = await held(store)
    await decided(store, job, Decision(verdict="redo", reviewer="ann", edit=Edit(payload='{"new":1}')))
    claim = {"lease": "mine", "changes": {"lease": "mine"}, "after_seconds": {"lease_until": 60}}
    await store.jobs.transition(job.id, a_step("claim", **claim), a_step("hold", changes={"response": b'"again"'}))
    await decided(store, job, Decision(verdict="reject", reviewer="bob"), round=2)
    (first, row), (second, other) = await verdicts(store)
    assert [first.verdict, second.verdict] == ["redo", "reject"]
    assert row.salt is not None
    assert other.salt is not None
    assert first.shown.input == salted_digest(row.salt, "input", BODY)
    assert second.shown.input == salted_digest(other.salt, "input", b'{"new":1}')
    assert second.shown.answer == salted_digest(other.salt, "answer", b'"again"')


@pytest.mark.parametrize("verdict", ["approve", "redo", "reject"])
async def test_a_decision_that_another_transition_precedes_is_signed(store: AStore, verdict: Verdict) -> None:
    job = await held(store)
    draft = a_step("draft", changes={"draft": Draft(response="1")})
    await store.jobs.transition(job.id, draft, *steps(job, Decision(verdict=verdict, reviewer="ann")))
    assert [receipt.verdict for receipt, _ in await verdicts(store)] == [verdict]


@pytest.mark.parametrize(("to", "count"), [("success", 1), ("fail", 1), ("human", 0)])
async def test_an_outcome_at_the_deadline_is_signed_off_by_the_policy(store: AStore, to: str, count: int) -> None:
    job = await leased(store)
    hold = a_step("hold", changes={"response": ANSWER}, after_seconds={"review_deadline": -1})
    await store.jobs.transition(job.id, hold)
    await store.jobs.transition(job.id, a_step("expire", to=to))
    signed = [(receipt.reviewer, receipt.verdict) for receipt, _ in await verdicts(store)]
    assert signed == [("policy", "approve" if to == "success" else "reject")] * count


async def test_cancelled_jobs_leave_no_receipt(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, a_step("cancel"))
    assert await verdicts(store) == []


async def test_a_receipt_says_how_long_each_reviewer_had_the_answer_open(store: AStore) -> None:
    job = await held(store)
    ann = {"reviewer": "ann", "actor": "user:ann"}
    lease = {"changes": {"review_lease": "ann"}, "after_seconds": {"review_lease_until": 60}}
    await store.jobs.transition(job.id, a_step("open", **ann, **lease))
    await store.jobs.transition(job.id, a_step("leave", **ann))
    events = await store.jobs.events(job.id)
    await decided(store, job, Decision(verdict="approve", reviewer="bob"))
    [(receipt, _)] = await verdicts(store)
    opened_at, left_at = (event.at for event in events[-2:])
    expected = left_at - opened_at
    assert receipt.open == ((OpenTime(reviewer="ann", us=expected),) if expected else ())
    assert receipt.held_at == events[1].at


async def test_many_processes_append_to_one_chain(store: AStore, other: AStore) -> None:
    jobs = [await held(store) for _ in range(24)]
    approve = Decision(verdict="approve", reviewer="ann")
    await together(decided((store, other)[index % 2], job, approve) for index, job in enumerate(jobs))
    assert sorted(receipt.job_id for receipt, _ in await verdicts(store)) == sorted(job.id for job in jobs)
    assert (await verified(store)).count == len(jobs) + 1


async def test_the_key_exists_from_its_first_use_on(store: AStore, other: AStore) -> None:
    key, head = await store.receipts.public_key(), await other.receipts.head()
    assert await other.receipts.public_key() == key
    assert head.count == 1
    await verified(store)


async def test_a_new_key_is_announced_by_the_old_one(store: AStore) -> None:
    await decided(store, await held(store), Decision(verdict="approve", reviewer="ann"))
    old = await store.receipts.public_key()
    receipt = await store.receipts.rotate()
    assert await store.receipts.public_key() != old
    await decided(store, await held(store), Decision(verdict="approve", reviewer="ann"))
    assert [row[0].key == receipt.new_key for row in await verdicts(store)] == [False, True]
    await verified(store)


async def test_a_key_after_a_loss_must_be_pinned(store: AStore) -> None:
    await store.receipts.head()
    await store.receipts.rotate(is_lost=True)
    with pytest.raises(BrokenChain, match="receipt 2 is signed with a key that no other key has announced"):
        await verified(store)


async def test_archived_receipts_are_deleted_and_the_rest_is_anchored(store: AStore) -> None:
    for _ in range(4):
        await decided(store, await held(store), Decision(verdict="approve", reviewer="ann"))
    stored = await store.receipts.page(EVERYTHING)
    figures = await store.receipts.figures(FigureQuery())
    await store.receipts.archive(3)
    await store.receipts.archive(2)  # declared already
    assert [await store.receipts.delete_archived(2), await store.receipts.delete_archived(2)] == [2, 1]
    assert await store.receipts.delete_archived(2) == 0
    rest, key = await store.receipts.page(EVERYTHING), await store.receipts.public_key()
    assert [row.seq for row in rest] == [4, 5, 6]
    for rows in (rest, [*stored[:3], *rest]):
        chain = ChainVerifier([key], await store.receipts.head())
        for row in rows:
            chain.add(row.line)
        chain.finish()
    assert await store.receipts.figures(FigureQuery()) == figures
    with pytest.raises(Conflict):
        await store.receipts.archive(99)


async def test_receipts_can_be_neither_changed_nor_deleted(store: AStore) -> None:
    if not isinstance(store, SqlStore):
        pytest.skip("the in-memory store has no triggers")
    await store.receipts.head()
    for statement in (sa.update(receipts).values(at=0), sa.delete(receipts)):
        with pytest.raises(sa.exc.DBAPIError, match="receipts are append-only"):
            await store._database.write(lambda tx, statement=statement: tx.conn.execute(statement).rowcount)
    await verified(store)


async def test_pages_of_receipts_go_by_number_job_and_time(store: AStore) -> None:
    jobs = [await held(store) for _ in range(3)]
    for job in jobs:
        await decided(store, job, Decision(verdict="reject", reviewer="ann"))
    rows = [receipt for receipt, _ in await verdicts(store)]

    async def listed(**filters: object) -> list[int]:
        return [row.seq for row in await store.receipts.page(ReceiptFilter(**filters))]  # type: ignore[arg-type]

    assert await listed() == [1, 2, 3, 4]
    assert await listed(after_seq=1, limit=2) == [2, 3]
    assert await listed(after_seq=1, until_seq=2) == [2]
    assert await listed(job_id=jobs[1].id) == [3]
    assert await listed(since=rows[-1].at + 1) == []
    assert await listed(until=rows[-1].at + 1) == [1, 2, 3, 4]


async def test_figures_are_the_sums_of_the_receipts(store: AStore) -> None:
    reviews = [("ann", "approve", None), ("ann", "reject", None), ("bob", "approve", '{"choices":[]}')]
    details = dict[int, DecisionDetails]()
    for number, (reviewer, verdict, response) in enumerate(reviews):
        decision = Decision(verdict=verdict, reviewer=reviewer, edit=Edit(response=response))  # type: ignore[arg-type]
        of_prompt = {"prompt": "answer_mail", "prompt_version": number} if number else {}
        job = await held(store, **of_prompt)
        await decided(store, job, decision)
        details[(await verdicts(store))[-1][0].seq] = DecisionDetails(**of_prompt)
    signed = [receipt for receipt, _ in await verdicts(store)]
    for by in ((), ("reviewer",), ("policy", "target"), ("hour", "reviewer"), ("day",), ("prompt", "prompt_version")):
        query = FigureQuery(by=by)  # type: ignore[arg-type]
        assert await store.receipts.figures(query) == computed_figures(signed, query, details)
    assert (await store.receipts.figures(FigureQuery(prompt="answer_mail")))[1].decisions == 2
    _, total = await store.receipts.figures(FigureQuery())
    assert (total.decisions, total.approved, total.edited, total.rejected) == (3, 2, 1, 1)
    rows, _ = await store.receipts.figures(FigureQuery(by=("reviewer",), offset=1, limit=1))
    assert [row.dimensions for row in rows] == [{"reviewer": "bob"}]
    assert (await store.receipts.figures(FigureQuery(until=1)))[1] == FigureTotals()


async def test_salts_are_deleted_with_their_jobs(store: AStore, url: str) -> None:
    await decided(store, await held(store), Decision(verdict="approve", reviewer="ann"))
    assert await store.jobs.purge(-60, 10) == 1
    [(_, row)] = await verdicts(store)
    assert row.salt is None
    async with opened(url) as reopened:
        await verified(reopened)
