"""Contract tests of stores: error budgets, their passes and audits, and planted items."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from signoff.budgets import PassGrant, PassRequest
from signoff.core.audit import AuditFilter
from signoff.core.filters import JobFilter
from signoff.core.job import Decision, Edit, Job
from signoff.core.reviews.answer_digest import Harmless
from signoff.core.reviews.budget_period import BudgetPeriod, BudgetTerms
from signoff.core.reviews.catch_rate import lowest_catch_rate
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.error_budget import upper_bound
from signoff.core.reviews.figures import FigureQuery
from signoff.core.reviews.planted import PlantedItem
from signoff.core.reviews.ruling import Ruling
from signoff.core.transitions import replay
from signoff.core.usage import UsageQuery
from signoff.errors import PassLapsed, Stale
from support.stores import ANSWER, AStore, a_step, leased

pytestmark = pytest.mark.anyio
TERMS = BudgetTerms(answers=1000, share=0.05, audit_rate=0.2)
ALLOWED = 50
FREE = ALLOWED - 19  # with no wrong answer, as the published table says
OTHER_ANSWER = ANSWER.replace(b"Hello yourself", b"Goodbye")
PUNCTUATED_ANSWER = ANSWER.replace(b"Hello yourself", b"Hello, yourself!")
SPACED_ANSWER = ANSWER.replace(b"Hello yourself", b" Hello  yourself\\n")
_numbers = iter(range(1_000_000))


async def take(store: AStore, most: int = 1, *, seconds: float = 60, **more: Any) -> tuple[PassGrant, str]:
    """Take passes; return the grant and the id of the lease."""
    plain = {"policy": "p", "version": 1, "terms": TERMS, "lease": f"lease-{next(_numbers)}"}
    request = PassRequest(**(plain | {"most": most, "seconds": seconds} | more))
    return await store.budgets.take_passes(request), request.lease


def a_ruling(lease: str, *, is_audit: bool, period: int = 1) -> Ruling:
    value = 0.1 if is_audit else 0.9
    coin = Coin(value=value, look_rate=0.2, audit_rate=0.2, policy="p", period=period, lease=lease)
    return Ruling(outcome="hold" if is_audit else "pass", coin=coin)


async def delivered(store: AStore, lease: str) -> Job:
    """Let an answer leave with a pass of `lease`."""
    job = await leased(store)
    changes = {"response": ANSWER, "ruling": a_ruling(lease, is_audit=False)}
    return await store.jobs.transition(job.id, a_step("succeed", changes=changes))


async def audited(store: AStore, lease: str, *, period: int = 1, **more: Any) -> Job:
    """Hold an answer for an audit."""
    job = await leased(store, **more)
    changes = {"response": ANSWER, "ruling": a_ruling(lease, is_audit=True, period=period)}
    return await store.jobs.transition(job.id, a_step("hold", changes=changes))


async def decided(store: AStore, job: Job, verdict: str, *, edited: bytes | None = None, reviewer: str = "ann") -> Job:
    """Decide on a held job, at once."""
    edit = Edit(response=None if edited is None else edited.decode())
    decision = Decision(verdict=verdict, reviewer=reviewer, edit=edit)  # type: ignore[arg-type]
    decide = a_step(
        "decide",
        round=job.round,
        reviewer=reviewer,
        changes={"decision": decision},
        after_seconds={"release_at": 0},
        decision=decision,
    )
    changes = {"redo": {"attempt": 0, "lane": "later"}, "reject": {}, "approve": {}}[verdict]
    changes = changes if edited is None else {"response": edited}
    after = {"due_at": 0.0} if verdict == "redo" else {}
    takes_effect = a_step(verdict, round=job.round, changes=changes, after_seconds=after)
    return await store.jobs.transition(job.id, decide, takes_effect)


async def period(store: AStore) -> BudgetPeriod:
    current = await store.budgets.period("p")
    assert current is not None
    return current


async def test_the_gate_gives_as_many_passes_as_the_budget_has(store: AStore, other: AStore) -> None:
    assert await store.budgets.period("p") is None
    grants = [(await take(each, 7))[0].number for each in (store, other) * 4]
    assert grants == [7, 7, 7, 7, FREE - 28, 0, 0, 0]
    assert (await period(other)).outstanding == FREE


@pytest.mark.law
async def test_two_processes_together_never_take_more_than_the_budget_has(store: AStore, other: AStore) -> None:
    grants = await asyncio.gather(*(take(each, 3) for each in (store, other) * 20))
    assert sum(grant.number for grant, _ in grants) == FREE
    assert {grant.period.number for grant, _ in grants} == {1}


async def test_a_delivered_answer_uses_its_pass_and_makes_room_for_the_next(store: AStore) -> None:
    _, lease = await take(store, FREE)
    assert (await take(store))[0].number == 0
    await delivered(store, lease)
    now = await period(store)
    assert (now.delivered, now.outstanding, now.passes) == (1, FREE - 1, 1)
    assert (await take(store, 10))[0].number == 1


async def test_an_audit_is_counted_as_wrong_until_it_is_approved(store: AStore) -> None:
    _, lease = await take(store, 1)
    job = await audited(store, lease)
    now = await period(store)
    assert (now.audits, now.audits_open, now.wrong, now.outstanding) == (1, 1, 0, 0)
    assert now.passes == ALLOWED - (upper_bound(1, 0.2, 0.95) - 1)
    await decided(store, job, "approve")
    now = await period(store)
    assert (now.audits, now.audits_open, now.wrong, now.delivered, now.passes) == (1, 0, 0, 0, FREE)


@pytest.mark.parametrize(
    ("verdict", "edited", "is_wrong"),
    [
        ("approve", None, False),
        ("approve", SPACED_ANSWER, False),
        ("approve", OTHER_ANSWER, True),
        ("redo", None, True),
        ("reject", None, True),
    ],
    ids=str,
)
async def test_an_answer_is_wrong_if_it_is_rejected_sent_back_or_edited(
    store: AStore, verdict: str, edited: bytes | None, is_wrong: bool
) -> None:
    _, lease = await take(store, 1)
    await decided(store, await audited(store, lease), verdict, edited=edited)
    now = await period(store)
    assert (now.audits, now.audits_open, now.wrong) == (1, 0, int(is_wrong))


async def test_open_audits_close_the_gate_and_verdicts_open_it_again(store: AStore) -> None:
    jobs = list[Job]()
    while (await period(store) if jobs else None) is None or (await period(store)).passes:
        _, lease = await take(store, 1)
        jobs.append(await audited(store, lease))
    assert upper_bound(len(jobs), 0.2, 0.95) - len(jobs) >= ALLOWED
    assert (await take(store))[0].number == 0
    await decided(store, jobs[0], "reject")
    assert (await take(store))[0].number == 0
    await decided(store, jobs[1], "approve")
    assert (await take(store))[0].number == 1


async def test_passes_that_were_not_used_go_back_and_cannot_be_used_any_more(store: AStore) -> None:
    _, lease = await take(store, FREE, seconds=-1)
    await delivered(store, lease)  # no other process has taken passes since
    grant, newer = await take(store, FREE)
    assert (grant.number, grant.period.delivered) == (FREE, 1)
    job = await leased(store)
    changes = {"response": ANSWER, "ruling": a_ruling(lease, is_audit=False)}
    with pytest.raises(PassLapsed):
        await store.jobs.transition(job.id, a_step("succeed", changes=changes))
    stored = await store.jobs.get(job.id)
    assert stored is not None
    assert (stored.status, stored.response) == ("bot", None)
    await delivered(store, newer)
    assert (await period(store)).delivered == 2


async def test_an_audit_is_counted_even_if_its_pass_has_lapsed(store: AStore) -> None:
    _, lease = await take(store, 1, seconds=-1)
    await take(store, 1)
    await audited(store, lease)
    assert (await period(store)).audits_open == 1


async def test_a_stale_transition_uses_no_pass_and_opens_no_audit(store: AStore) -> None:
    _, lease = await take(store, 2)
    for is_audit, verb in ((False, "succeed"), (True, "hold")):
        job = await leased(store)
        changes = {"response": ANSWER, "ruling": a_ruling(lease, is_audit=is_audit)}
        with pytest.raises(Stale):
            await store.jobs.transition(job.id, a_step(verb, lease="lapsed", changes=changes))
    now = await period(store)
    assert (now.delivered, now.outstanding, now.audits) == (0, 2, 0)


async def test_a_period_ends_after_its_answers_and_its_audits_stay_with_it(store: AStore) -> None:
    terms = BudgetTerms(answers=40, share=0.9, audit_rate=0.2)
    _, lease = await take(store, 1, terms=terms)
    job = await audited(store, lease)
    number = 0
    while number < 40:
        grant, lease = await take(store, 5, terms=terms)
        for _ in range(grant.number):
            await delivered(store, lease)
        assert grant.number > 0
        number += grant.number
    assert ((await period(store)).delivered, (await period(store)).number) == (40, 1)
    grant, _ = await take(store, 1, terms=terms)
    assert (grant.number, grant.period.number, grant.period.delivered, grant.period.audits_open) == (1, 2, 0, 0)
    await decided(store, job, "reject")
    now = await period(store)
    assert (now.number, now.audits, now.wrong) == (2, 0, 0)


async def test_only_new_terms_start_a_period_and_those_of_old_versions_do_not(store: AStore) -> None:
    await take(store)
    assert (await take(store, version=2))[0].period.number == 1
    new = msgspec.structs.replace(TERMS, share=0.06)
    assert (await take(store, version=3, terms=new))[0].period.number == 2
    grant, _ = await take(store, version=2, terms=TERMS)
    assert (grant.period.number, grant.period.terms) == (2, new)


async def test_a_restart_starts_a_period_and_is_in_the_audit_log(store: AStore) -> None:
    assert await store.budgets.restart("p") is None
    _, lease = await take(store, 1)
    job = await audited(store, lease)
    new = await store.budgets.restart("p")
    assert new is not None
    assert (new.number, new.terms, new.audits_open) == (2, TERMS, 0)
    [entry] = await store.audit.page(AuditFilter(action="budget_restarted"))
    assert (entry.subject, entry.before, entry.after) == ("policy:p", {"period": 1}, {"period": 2})
    await decided(store, job, "approve")
    assert (await period(store)).number == 2


async def test_a_cancelled_job_under_audit_goes_on_as_a_copy_without_a_caller(store: AStore) -> None:
    _, lease = await take(store, 1)
    job = await audited(store, lease, user_id=7, client_id="c", fingerprint="f")
    ended = await store.jobs.transition(job.id, a_step("cancel"))
    assert (ended.status, (await period(store)).audits_open) == ("fail", 1)
    [copy] = await store.jobs.list(JobFilter(status="human"))
    assert (copy.copy_of, copy.response, copy.body, copy.user_id) == (job.id, ANSWER, job.body, 7)
    assert (copy.client_id, copy.fingerprint, copy.deliver, copy.cache_key) == (None, None, (), None)
    assert copy.id > job.id or not job.id.startswith("0")
    row = replay(await store.jobs.events(copy.id))
    assert (row["status"], row["copy_of"], row["round"]) == ("human", job.id, 1)
    await decided(store, copy, "reject")
    now = await period(store)
    assert (now.audits, now.audits_open, now.wrong) == (1, 0, 1)


async def test_a_copy_is_no_job_of_its_owner_and_in_no_report(store: AStore) -> None:
    _, lease = await take(store, 1)
    job = await audited(store, lease, user_id=7)
    await store.jobs.transition(job.id, a_step("cancel"))
    [copy] = await store.jobs.list(JobFilter(status="human"))
    before = await store.usage.report(UsageQuery(by=("user",)))
    assert [each.id for each in await store.jobs.list(JobFilter(user_id=7))] == [job.id]
    assert await store.jobs.count(JobFilter(user_id=7), at_most=9) == 1
    assert (await store.jobs.backlog(7, at_most=9)).jobs == 0
    await decided(store, copy, "approve")
    assert await store.usage.report(UsageQuery(by=("user",))) == before


async def test_a_copy_that_is_sent_back_ends_and_asks_no_model(store: AStore) -> None:
    _, lease = await take(store, 1)
    job = await audited(store, lease)
    await store.jobs.transition(job.id, a_step("cancel"))
    [copy] = await store.jobs.list(JobFilter(status="human"))
    ended = await decided(store, copy, "redo")
    assert ended.status == "fail"
    assert (await period(store)).wrong == 1
    assert await store.jobs.claim(actor="w", lease="x", limit=9, lease_seconds=9) == []


async def test_a_cancelled_job_without_an_audit_has_no_copy(store: AStore) -> None:
    job = await leased(store)
    await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER, "ruling": Ruling(outcome="hold")}))
    await store.jobs.transition(job.id, a_step("cancel"))
    assert await store.jobs.list(JobFilter(status="human")) == []


async def test_planted_items_are_presented_in_turn_and_count_for_their_reviewer(store: AStore) -> None:
    like = await leased(store, user_id=7)
    assert await store.budgets.present_planted("p", like, "none", actor="x") is None
    items = [
        await store.budgets.plant(PlantedItem(policy="p", path=like.path, body=b'{"n":%d}' % n, response=ANSWER))
        for n in range(2)
    ]
    assert list(await store.budgets.planted("p")) == items
    assert list(await store.budgets.planted("p", after_id=items[0].id, limit=1)) == items[1:]
    bodies, verdicts = list[bytes](), ("approve", "reject", "redo", "approve")
    for n, verdict in enumerate(verdicts):
        job = await store.budgets.present_planted("p", like, f"planted-{n}", actor="x")
        assert job is not None
        bodies.append(job.body)
        assert (job.status, job.user_id, job.target, job.ruling) == ("human", 7, like.target, like.ruling)
        edited = OTHER_ANSWER if n == 3 else None
        await decided(store, job, verdict, reviewer="bo" if n == 3 else "ann", edited=edited)
    assert bodies == [item.body for item in items] * 2
    counts = await store.budgets.catch_counts("p")
    assert [(count.reviewer, count.judged, count.caught) for count in counts] == [("ann", 3, 2), ("bo", 1, 1)]
    assert await store.budgets.drop_planted("q", items[0].id) is False
    assert await store.budgets.drop_planted("p", items[0].id) is True
    assert list(await store.budgets.planted("p")) == items[1:]
    actions = [entry.action for entry in await store.audit.page(AuditFilter(subject="policy:p"))]
    assert actions == ["planted_item_removed", "planted_item_added", "planted_item_added"]


@pytest.mark.parametrize(
    ("harmless", "verdict", "edited", "is_wrong"),
    [
        (("punctuation",), "approve", PUNCTUATED_ANSWER, False),
        (("case", "punctuation"), "approve", PUNCTUATED_ANSWER.lower(), False),
        (("case",), "approve", PUNCTUATED_ANSWER, True),
        ((), "approve", PUNCTUATED_ANSWER, True),
        (("case", "punctuation"), "approve", OTHER_ANSWER, True),
        (("case", "punctuation"), "redo", None, True),
    ],
    ids=str,
)
async def test_an_edit_counts_for_a_planted_item_as_it_does_for_an_audit(
    store: AStore, harmless: tuple[Harmless, ...], verdict: str, edited: bytes | None, is_wrong: bool
) -> None:
    _, lease = await take(store, terms=msgspec.structs.replace(TERMS, harmless=harmless))
    audit = await audited(store, lease)
    await store.budgets.plant(PlantedItem(policy="p", path=audit.path, body=audit.body, response=ANSWER))
    planted = await store.budgets.present_planted("p", audit, "planted", actor="x", harmless=harmless)
    assert planted is not None
    for job in (audit, planted):
        await decided(store, job, verdict, edited=edited)
    [count] = await store.budgets.catch_counts("p")
    _, figures = await store.receipts.figures(FigureQuery())
    caught = [(await period(store)).wrong, count.caught, figures.caught]
    assert (caught, figures.planted, figures.decisions) == ([int(is_wrong)] * 3, 1, 1)


async def test_a_period_takes_the_catch_rate_of_its_start(store: AStore) -> None:
    assert (await take(store))[0].period.catch_rate is None
    like = await leased(store)
    await store.budgets.plant(PlantedItem(policy="p", path=like.path, body=b"{}", response=ANSWER))
    for n in range(20):
        job = await store.budgets.present_planted("p", like, f"planted-{n}", actor="x")
        assert job is not None
        await decided(store, job, "reject" if n else "approve")
    assert (await period(store)).catch_rate is None
    new = await store.budgets.restart("p")
    assert new is not None
    assert new.catch_rate == lowest_catch_rate(19, 20, 0.025)
    assert (await period(store)).catch_rate == new.catch_rate
