"""The error budget on the path of an answer: gate, coin, audit, and what nobody can do about them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from signoff.core.access import Caller
from signoff.core.cache import compute_cache_key
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.core.reviews.coin import KEY_PURPOSE, toss
from signoff.core.reviews.copies import is_planted
from signoff.core.reviews.error_budget import upper_bound
from signoff.core.reviews.feedback import FeedbackQuery
from signoff.core.reviews.planted import PlantedItem
from signoff.core.reviews.policy import JobPolicy, PolicyVersion
from signoff.core.reviews.queues import ReviewFilter
from signoff.core.reviews.rules import Action, Budget, ReviewPolicy, Rule
from signoff.core.wire import parse_time
from signoff.errors import Overloaded
from signoff.stores.budgets_schema import budget_audits, budget_leases
from signoff.work.admin.erasure import erase_user
from signoff.work.admin.people import UserChange, change_user
from signoff.work.jobs.cancel import cancel
from signoff.work.jobs.query import get_job, list_events, list_jobs
from signoff.work.jobs.retry import retry_job
from signoff.work.reviews.bulk import BulkSelection, select_bulk
from signoff.work.reviews.desk import VerdictRequest, decide
from signoff.work.reviews.feedback import export_end, export_feedback
from support.live_server import Live, live, until
from support.stores import ANSWER, a_job, rows

pytestmark = pytest.mark.anyio
BUDGET = Budget(answers=10_000, share=0.02, audit_rate=0.5)
ALLOWED = 200
OWNER = Caller(user_id=1, token_id=1, role="user", email="ann@example.com")
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
ADMIN = Caller(user_id=98, token_id=98, role="admin", email="ada@example.com")


class BudgetedServer:
    """A server with a policy that has an error budget."""

    def __init__(self, server: Live, policy: ReviewPolicy) -> None:
        self.server = server
        self.services = server.services
        self.policy = policy
        self._number = 0

    async def change(self, **changes: Any) -> None:
        """Save a new version of the policy, which applies to the jobs that follow."""
        policy = msgspec.structs.replace(self.policy, **changes)
        self.policy = await self.services.store.policies.put(policy)

    async def ask(self, number: int = 1, **more: Any) -> list[Job]:
        """Submit jobs under the policy, and return them once their answers have passed or are held."""
        named = (PolicyVersion(name=self.policy.name, version=self.policy.version),)
        policy = JobPolicy(named=named, is_judged=True, **more.pop("policy", {}))
        jobs = list[Job]()
        for _ in range(number):
            self._number += 1
            plain = {"policy": policy, "metadata": b"%d" % self._number}
            job = a_job(self.services.ids.new_id(), **(plain | more))
            jobs.append(await self.services.store.jobs.insert(job, actor=OWNER.actor))
        return [await self.settled(job.id) for job in jobs]

    async def settled(self, job_id: str) -> Job:
        async def look() -> Job | None:
            job = await self.services.store.jobs.get(job_id)
            assert job is not None
            return None if job.status == "bot" else job

        return await until(look)

    async def period(self) -> BudgetPeriod:
        period = await self.services.store.budgets.period(self.policy.name)
        assert period is not None
        return period

    async def decide(self, job: Job, verdict: str, **more: Any) -> Job:
        request = VerdictRequest(verdict=verdict, round=job.round, **more)  # type: ignore[arg-type]
        reviewer = REVIEWER if job.review_queue is None else ADMIN  # who belongs to every queue
        return await decide(self.services, reviewer, job.id, request)

    def coin(self, job: Job, review_round: int = 0) -> float:
        key = self.services.adapters.vault.derive_key(KEY_PURPOSE)
        return toss(key, job.id, review_round, job.attempt)

    async def audits(self) -> list[dict[str, Any]]:
        return await rows(self.services.store, sa.select(*budget_audits.c))  # type: ignore[arg-type]

    async def on_desk(self) -> Sequence[Job]:
        return await self.services.store.jobs.list(JobFilter(status="human", limit=1000))


@contextlib.asynccontextmanager
async def desk(tmp_path: Path, budget: Budget | None = BUDGET, **more: Any) -> AsyncIterator[BudgetedServer]:
    async with live(tmp_path, cache="sql") as server:
        draft = ReviewPolicy(name="careful", target="echo", budget=budget, **more)
        policy = await server.services.store.policies.put(draft)
        yield BudgetedServer(server, policy)


def is_audit(job: Job) -> bool:
    assert job.ruling is not None
    return job.ruling.coin is not None and job.ruling.coin.is_audit


async def test_each_answer_has_the_coin_that_the_key_says_and_audits_are_those_below_the_rate(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        jobs = await here.ask(40)
        for job in jobs:
            assert job.status == ("human" if here.coin(job) < BUDGET.audit_rate else "success")
            assert job.ruling is not None
            assert job.ruling.coin is not None
            assert (job.ruling.coin.value, job.ruling.coin.audit_rate) == (here.coin(job), BUDGET.audit_rate)
        held = [job for job in jobs if job.status == "human"]
        now = await here.period()
        assert 0 < len(held) < 40
        assert (now.audits_open, now.delivered, now.number) == (len(held), 40 - len(held), 1)
        audits = await here.audits()
        assert {(row["job_id"], row["coin"], row["rate"]) for row in audits} == {
            (job.id, here.coin(job), BUDGET.audit_rate) for job in held
        }


async def test_while_the_gate_is_closed_all_is_held_until_verdicts_open_it(tmp_path: Path) -> None:
    # given a budget that one open audit closes
    allowed = upper_bound(0, 0.5, 0.95) + 1
    async with desk(tmp_path, Budget(answers=10 * allowed, share=0.1, audit_rate=0.5)) as here:
        jobs = list[Job]()
        while not [job for job in jobs if job.status == "human"]:
            jobs += await here.ask()
        audit = jobs[-1]
        held = await here.ask(5)
        assert {job.status for job in held} == {"human"}
        assert [job.ruling and job.ruling.coin for job in held] == [None] * 5
        await here.decide(held[0], "reject")
        assert (await here.ask())[0].status == "human"
        # when the audit turns out right, answers pass again, and those that were held stay with a person
        await here.decide(audit, "approve")
        later = await here.ask()
        assert later[0].ruling is not None
        assert later[0].ruling.coin is not None
        assert {job.status for job in await here.on_desk()} == {"human"}
        assert len([job for job in await here.on_desk() if job.id in {each.id for each in held}]) == 4


async def test_a_retry_and_a_redo_are_new_answers_with_new_coins(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        [audit, *_] = [job for job in await here.ask(20) if is_audit(job)]
        await here.decide(audit, "redo")
        again = await here.settled(audit.id)
        assert again.ruling is not None
        assert again.ruling.coin is not None
        assert again.ruling.coin.value == here.coin(again, audit.round) != here.coin(audit)
        [first] = [row for row in await here.audits() if (row["job_id"], row["round"]) == (audit.id, 1)]
        assert first["is_wrong"] is True
        [passed, *_] = [job for job in await here.ask(20) if job.status == "success"]
        owner = msgspec.structs.replace(OWNER, user_id=passed.user_id)
        with contextlib.suppress(Exception):
            retried = await here.settled((await retry_job(here.services, owner, passed.id)).id)
            assert retried.id != passed.id


@pytest.mark.parametrize(
    ("edited", "is_wrong"),
    [(None, False), ("Hello  yourself\n", False), ("Hello, you", True)],
    ids=["unchanged", "whitespace", "words"],
)
async def test_an_edit_of_more_than_whitespace_makes_an_audited_answer_wrong(
    tmp_path: Path, edited: str | None, *, is_wrong: bool
) -> None:
    async with desk(tmp_path) as here:
        [audit, *_] = [job for job in await here.ask(20) if is_audit(job)]
        answer = msgspec.json.decode(audit.response or b"")
        text = answer["choices"][0]["message"]["content"]
        edit = Edit() if edited is None else Edit(response=msgspec.json.encode(edited).decode())
        if edited is not None and not is_wrong:
            edit = Edit(response=msgspec.json.encode(f" {text} \n").decode())
        await here.decide(audit, "approve", edit=edit)
        now = await here.period()
        assert now.wrong == int(is_wrong)


async def test_an_answer_that_passed_is_cached_for_nobody_and_one_that_a_person_approved_is(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        model = await here.services.caches.models.find("echo")
        key = compute_cache_key(
            scope="user:1",
            path="/v1/chat/completions",
            target="echo",
            versions=here.services.caches.models.version_of(model),
            policy=JobPolicy(),
            body=b"{}",
            headers={},
        )
        jobs = await here.ask(20, cache="miss", cache_key=key)
        passed = [job for job in jobs if job.status == "success"]
        assert {job.cache for job in passed} == {"bypass"}
        caches = here.services.caches.responses
        await caches.until_stored()
        assert await caches.lookup(key, None) is None
        [audit, *_] = [job for job in jobs if job.status == "human"]
        await here.decide(audit, "approve")
        await caches.until_stored()
        entry = await caches.lookup(key, None)
        assert entry is not None
        assert entry.answer is not None


async def test_cancelling_stops_the_delivery_and_not_the_audit(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        [audit, *_] = [job for job in await here.ask(20) if is_audit(job)]
        before = await here.period()
        await cancel(here.services, OWNER, audit.id)
        now = await here.period()
        assert (now.audits, now.audits_open) == (before.audits, before.audits_open)
        [copy] = [job for job in await here.on_desk() if job.copy_of == audit.id]
        # its owner sees the cancelled job, and no copy of it
        assert copy.id not in {job.id for job in await list_jobs(here.services, OWNER, JobFilter(limit=1000))}
        with pytest.raises(Exception, match="does not exist"):
            await get_job(here.services, OWNER, copy.id)
        with pytest.raises(Exception, match="does not exist"):
            await list_events(here.services, OWNER, copy.id)
        await here.decide(copy, "reject")
        assert (await here.period()).wrong == before.wrong + 1


@pytest.mark.parametrize("on_deadline", ["approve", "reject"])
async def test_a_deadline_never_decides_an_audit(tmp_path: Path, on_deadline: str) -> None:
    policy = {"deadline_seconds": 0.0, "on_deadline": on_deadline}
    async with desk(tmp_path) as here:
        jobs = await here.ask(20, policy=policy)
        audits = [job for job in jobs if is_audit(job)]

        async def all_expired() -> bool | None:
            held = await here.on_desk()
            return all(job.review_deadline is None for job in held) or None

        await until(all_expired)
        assert {job.id for job in await here.on_desk()} == {job.id for job in audits} != set()
        assert (await here.period()).audits_open == len(audits)


async def test_an_answer_whose_pass_has_lapsed_is_held(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        held = list[Job]()
        while not held:  # each time with at least an even chance that a pass is left, and no audit takes it
            await here.ask(2)
            await here.services.store._database.write(  # type: ignore[attr-defined]
                lambda tx: tx.conn.execute(sa.delete(budget_leases)).rowcount
            )
            held = [job for job in await here.ask(4) if job.status == "human" and not is_audit(job)]
        assert all(here.coin(job) >= BUDGET.audit_rate for job in held)


async def test_a_policy_without_a_budget_can_let_a_person_look_at_a_share(tmp_path: Path) -> None:
    async with desk(tmp_path, budget=None, default=Action(then="audit", audit=0.3)) as here:
        jobs = await here.ask(30)
        assert {job.id for job in jobs if job.status == "human"} == {job.id for job in jobs if here.coin(job) < 0.3}
        assert await here.services.store.budgets.period("careful") is None


async def test_a_look_above_the_audit_rate_does_not_count_in_the_budget(tmp_path: Path) -> None:
    async with desk(tmp_path, default=Action(then="audit", audit=0.9)) as here:
        jobs = await here.ask(30)
        assert {job.id for job in jobs if job.status == "human"} == {job.id for job in jobs if here.coin(job) < 0.9}
        assert (await here.period()).audits == len([job for job in jobs if here.coin(job) < BUDGET.audit_rate])


async def test_an_audit_has_the_place_on_the_desk_of_a_rule_that_holds(tmp_path: Path) -> None:
    rule = Rule(if_="false", then="hold", queue="risky", priority=8)
    async with desk(tmp_path, rules=(rule,)) as here:
        held = [job for job in await here.ask(20) if job.status == "human"]
        assert {(job.review_queue, job.review_priority) for job in held} == {("risky", 8)}


async def test_new_terms_start_a_new_period_for_the_answers_that_follow(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        old = await here.ask(40)  # of which some are audited
        await here.change(budget=Budget(answers=10_000, share=0.03, audit_rate=0.5))
        await here.ask(10)
        now = await here.period()
        assert (now.number, now.terms.share) == (2, 0.03)
        [audit, *_] = [job for job in old if is_audit(job)]
        await here.decide(audit, "reject")
        assert (await here.period()).wrong == 0


async def test_an_audit_stays_one_if_the_store_fails_to_present_a_planted_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, planted_rate=1)) as here:
        attempts = list[Job]()

        async def fail(_policy: str, like: Job, *_: object, **__: object) -> None:
            attempts.append(like)
            raise Overloaded("The database does not answer.")

        monkeypatch.setattr(here.services.store.budgets, "present_planted", fail)
        jobs = await here.ask(20)
        audits = [job for job in jobs if here.coin(job) < BUDGET.audit_rate]
        assert 0 < len(audits) < 20
        assert {job.id for job in jobs if job.status == "human"} == {job.id for job in audits}
        assert {row["job_id"] for row in await here.audits()} == {job.id for job in audits}
        assert (await here.period()).audits_open == len(audits)
        assert {job.id for job in attempts} == {job.id for job in audits}


MARKS = ("careful-coin", "copy_of", '"coin"', '"rule"', "is_look", "audit_rate", "planted", "present")


async def test_no_route_tells_a_reviewer_which_items_are_audited_or_planted(tmp_path: Path) -> None:
    rule = Rule(if_="false", then="hold", queue="risky", priority=8)
    budget = msgspec.structs.replace(BUDGET, planted_rate=0.5)
    async with desk(tmp_path, budget, rules=(rule,)) as here:
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=b'{"messages":[]}', response=ANSWER)
        await here.services.store.budgets.plant(item)
        jobs = await here.ask(30)
        [audit, *_] = [job for job in jobs if is_audit(job)]
        await cancel(here.services, OWNER, audit.id)
        held = await here.on_desk()
        planted = [job for job in held if job.copy_of is not None and job.copy_of != audit.id]
        assert planted
        token = await here.server.token("reviewer")
        shapes = set[tuple[Any, ...]]()
        paths = ["/jobs?limit=1000&status=human", "/api/jobs?limit=1000&status=human", "/", "/jobs?limit=1000"]
        for job in held:
            paths += [f"/api/jobs/{job.id}", f"/job?id={job.id}", f"/api/jobs/{job.id}/events"]
            _, events = await here.server.ask("GET", f"/api/jobs/{job.id}/events", token)
            shapes.add(tuple((each["seq"], each["verb"], *sorted(each["data"])) for each in events["data"]))
        # the events of all items have the same verbs, numbers and members
        first, *others = [{*shape} for shape in shapes]
        assert not [each ^ first for each in others]
        for path in paths:
            status, answer = await here.server.ask("GET", path, token)
            assert status == 200, path
            text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
            assert [mark for mark in MARKS if mark in text] == [], path
        # an admin sees the marks after the verdict, and not before
        admin = await here.server.token("admin")
        for job in held:
            for path in (f"/dashboard/review/{job.id}", f"/dashboard/jobs/{job.id}", f"/api/reviews/{job.id}"):
                status, answer = await here.server.ask("GET", path, admin)
                text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
                assert (status, [mark for mark in MARKS if mark in text]) == (200, []), path
        for job, is_visible in ((planted[0], False), (planted[0], True)):
            if is_visible:
                await here.decide(job, "reject")
            _, events = await here.server.ask("GET", f"/api/jobs/{job.id}/events", admin)
            assert ("present" in {each["verb"] for each in events["data"]}) == is_visible
        for path in ("budget", "planted", "catch-rates"):
            assert (await here.server.ask("GET", f"/api/policies/careful/{path}", token))[0] == 403


async def test_an_ordinary_an_audited_and_a_planted_item_look_alike_to_a_reviewer(tmp_path: Path) -> None:
    holding = "request.tags.risky && answer.length > 0"
    rule = Rule(if_=holding, then="hold", priority=8, deadline_seconds=3600, on_deadline="reject")
    budget = msgspec.structs.replace(BUDGET, planted_rate=1)
    async with desk(tmp_path, budget, rules=(rule,)) as here:
        wrong = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "No"}, "finish_reason": "stop"}]}
        body = b'{"model":"echo","messages":[{"role":"user","content":"Is it?"}]}'
        response = msgspec.json.encode(wrong)
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=body, response=response)
        await here.services.store.budgets.plant(item)
        [ordinary] = await here.ask(metadata=b'{"risky":true}')
        audit, gone, *_ = [job for job in await here.ask(20, metadata=b'{"risky":false}') if is_audit(job)]
        await cancel(here.services, OWNER, gone.id)
        held = await here.on_desk()
        [copy] = [job for job in held if job.copy_of == gone.id and not is_planted(job)]
        planted = [job for job in held if is_planted(job)]
        assert {job.copy_of for job in planted} >= {ordinary.id, audit.id, gone.id}
        token, lists = await here.server.token("reviewer"), "/api/reviews?limit=200"
        listed = {each["job_id"]: each for each in (await here.server.ask("GET", lists, token))[1]["data"]}
        opened = dict[str, Any]()
        for _ in held:
            status, taken = await here.server.ask("POST", "/api/reviews/next", token, json={"skip": [*opened]})
            assert status == 200
            opened[taken["job_id"]] = taken
        seen = dict[str, Any]()
        for job in (ordinary, audit, copy, *planted):
            _, shown = await here.server.ask("GET", f"/api/reviews/{job.id}", token)
            _, native = await here.server.ask("GET", f"/api/jobs/{job.id}", token)
            _, page = await here.server.ask("GET", f"/api/jobs/{job.id}/events", token)
            events = [each for each in page["data"] if each["verb"] != "open"]
            forms = [form_of(each) for each in (listed[job.id], opened[job.id], shown, native, *events)]
            seen[job.id] = forms, order_of_times(shown, native, events)
            assert shown["signals"]["answer.length"] == len(shown["answer"])
        assert [job_id for job_id in seen if seen[job_id] != seen[ordinary.id]] == []
        assert [job.id for job in (copy, *planted) if uuid.UUID(job.id).int >> 80 != job.created_at // 1000] == []


def form_of(value: Any) -> Any:
    """Return the names of all members, and the kinds of their values; of an answer and a request only the kind."""
    if isinstance(value, dict):
        texts = ("payload", "response", "transcript", "error")
        return {name: form_of(None if name in texts else member) for name, member in value.items()}
    return [form_of(each) for each in value[:1]] if isinstance(value, list) else type(value).__name__


def order_of_times(shown: Any, native: Any, events: Any) -> dict[str, bool]:
    """Return how the times of an item that a reviewer reads stand to each other."""
    created, held, deadline = (micros(shown[name]) for name in ("created_at", "held_at", "deadline"))
    times, first = [each["at"] for each in events], events[0]["data"]
    return {
        "created before it was held": created < held,
        "submitted when it was created": times[0] == created == micros(native["created_at"]) == first["created_at"],
        "due when it was created": first["due_at"] == created,
        "held when it was held": times[-1] == held,
        "events in order": times == sorted(times),
        "claimed before it was held": times[-2] < held,
        "changed when it was opened": micros(native["updated_at"]) > held,
        "due by its deadline": deadline - held == 3600 * 1_000_000,
    }


def micros(text: str) -> int:
    return parse_time(datetime.fromisoformat(text))


async def test_a_copy_that_is_sent_back_ends_as_a_job_that_its_caller_cancels(tmp_path: Path) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, planted_rate=1)) as here:
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=b'{"messages":[]}', response=ANSWER)
        await here.services.store.budgets.plant(item)
        gone, *_ = [job for job in await here.ask(20) if is_audit(job)]
        await cancel(here.services, OWNER, gone.id)
        held = await here.on_desk()
        copies = [job for job in held if job.copy_of == gone.id]
        assert {is_planted(job) for job in copies} == {True, False}
        token = await here.server.token("reviewer")
        ends = list[Any]()
        for job in (gone, *copies):
            if job is not gone:
                await here.decide(job, "redo")
            _, native = await here.server.ask("GET", f"/api/jobs/{job.id}", token)
            _, events = await here.server.ask("GET", f"/api/jobs/{job.id}/events", token)
            last = events["data"][-1]
            ends.append((native["status"], native["error"], last["verb"], last["actor"], sorted(last["data"])))
        assert ends[1:] == [ends[0]] * len(copies)


async def test_a_planted_item_is_compared_with_the_edits_that_its_budget_calls_harmless(tmp_path: Path) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, planted_rate=1, harmless=("case",))) as here:
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=b'{"messages":[]}', response=ANSWER)
        await here.services.store.budgets.plant(item)
        await here.ask(20)
        planted = [job for job in await here.on_desk() if is_planted(job)]
        for job, text in zip(planted, ("hello yourself", "Hello, yourself"), strict=False):
            edited = ANSWER.replace(b"Hello yourself", text.encode()).decode()
            await here.decide(job, "approve", edit=Edit(response=edited))
        [count] = await here.services.store.budgets.catch_counts("careful")
        assert (count.judged, count.caught) == (2, 1)


async def test_a_repeated_selection_for_a_bulk_decision_leaves_out_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.work.reviews.bulk.SINGLE_SHARE", 0.5)
    async with desk(tmp_path, default=Action(then="hold")) as here:
        jobs = await here.ask(20)
        selection = BulkSelection(filters=ReviewFilter(queues=("",), limit=100), verdict="approve")
        bulks = [await select_bulk(here.services, REVIEWER, selection) for _ in range(5)]
        [chosen] = {tuple(each.job_id for each in bulk.items) for bulk in bulks}
        assert 0 < len(chosen) < len(jobs)


async def test_the_marks_are_in_no_member_of_a_job_that_a_reviewer_gets(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        [audit, *_] = [job for job in await here.ask(20) if is_audit(job)]
        for caller in (REVIEWER, ADMIN, OWNER):
            seen = await get_job(here.services, caller, audit.id)
            assert seen.ruling is None or (seen.ruling.coin, seen.ruling.rule, seen.ruling.audit) == (None, None, None)
        await here.decide(audit, "approve")
        assert (await get_job(here.services, REVIEWER, audit.id)).ruling.coin is None  # type: ignore[union-attr]
        assert (await get_job(here.services, ADMIN, audit.id)).ruling.coin is not None  # type: ignore[union-attr]


async def test_an_erasure_leaves_no_copy_of_an_audited_answer_and_no_planted_item_beside_it(tmp_path: Path) -> None:
    budget = msgspec.structs.replace(BUDGET, planted_rate=1)
    async with desk(tmp_path, budget) as here:
        services = here.services
        user = await services.store.people.put_user("ann@example.com", "user")
        await services.store.people.put_user("ada@example.com", "admin")
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=b'{"messages":[]}', response=ANSWER)
        await services.store.budgets.plant(item)
        jobs = await here.ask(12, user_id=user.id)
        cancelled, judged, waiting, *_ = [job for job in jobs if is_audit(job)]
        owner = msgspec.structs.replace(OWNER, user_id=user.id)
        await cancel(services, owner, cancelled.id)
        await here.decide(judged, "reject", reason="no")
        retried = await retry_job(services, owner, judged.id)
        await here.settled(retried.id)
        before = await here.period()
        assert before.audits_open >= 2

        await change_user(services, ADMIN, user.id, UserChange(active=False))
        await erase_user(services, ADMIN, user.id)

        assert [job for job in await services.store.jobs.list(JobFilter(limit=1000)) if job.user_id == user.id] == []
        audits = await here.audits()
        assert waiting.id in {row["job_id"] for row in audits}
        assert {(row["is_wrong"] is None, row["digest"]) for row in audits} == {(False, "")}
        after = await here.period()
        assert (after.audits_open, after.detected) == (0, before.detected)  # what nobody can judge stays wrong


async def test_an_export_has_the_verdicts_on_audits_also_on_cancelled_ones_and_no_planted_item(tmp_path: Path) -> None:
    budget = msgspec.structs.replace(BUDGET, planted_rate=1)
    async with desk(tmp_path, budget) as here:
        services, wrong = here.services, b'{"choices":[{"message":{"role":"assistant","content":"planted"}}]}'
        item = PlantedItem(policy="careful", path="/v1/chat/completions", body=b'{"messages":[]}', response=wrong)
        await services.store.budgets.plant(item)
        cancelled, judged, *_ = [job for job in await here.ask(12) if is_audit(job)]
        await cancel(services, OWNER, cancelled.id)
        [copy] = [job for job in await here.on_desk() if job.copy_of == cancelled.id and not is_planted(job)]
        planted = next(job for job in await here.on_desk() if job.response == wrong)
        for job in (judged, copy):
            await here.decide(job, "approve", edit=Edit(response='"better"'))
        await here.decide(planted, "reject", reason="no")
        end = await export_end(services, ADMIN)
        lines = [line async for line in export_feedback(services, ADMIN, FeedbackQuery(), until_seq=end)]
        exported = {row["job_id"]: row for row in map(msgspec.json.decode, lines)}
        assert exported.keys() == {judged.id, copy.id}
        for job in (judged, copy):
            row = exported[job.id]
            assert msgspec.json.encode(row["answer"]) == msgspec.json.format(job.response, indent=-1)
            assert "better" in str(row["final"])
            assert row["edited"]
        assert not [mark for mark in MARKS if mark in b"".join(lines).decode()]
