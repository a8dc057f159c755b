"""The hold: no text that waits for a review is ever readable by a caller who may not review.

The upstream remembers, so held text could come back through conversations, responses, items, retries and reruns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Caller
from signoff.core.dialects.tool_call_edits import tool_calls_of
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job, Verdict
from signoff.core.reviews.bulk import stays_out_of_bulk
from signoff.core.reviews.item import item_as_json
from signoff.core.reviews.queues import ReviewFilter
from signoff.core.reviews.votes import votes_needed
from signoff.core.wire import job_as_json
from signoff.errors import Stale
from signoff.stores.schema import jobs
from signoff.work.jobs.query import get_job, list_events
from signoff.work.reviews.bulk import BulkSelection, apply_bulk, select_bulk, undo_bulk
from signoff.work.reviews.desk import VerdictRequest, decide, release_verdict, save_draft, undo_verdict
from signoff.work.reviews.held import load_held
from signoff.work.reviews.history import with_queues
from support.live_server import Live, live
from support.stores import execute

pytestmark = [pytest.mark.anyio, pytest.mark.law]
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
OTHERS = [Caller(user_id=number, token_id=number, role="admin", email=f"a{number}@example.com") for number in (97, 98)]
TOOLS = [{"type": "function", "name": "tell", "parameters": {"type": "object"}}]
STREAM = {"accept": "text/event-stream"}
STEPS = 60
STEPS_TO_A_LOOK = 10


def seeds(number: int) -> list[Any]:
    """Return that many seeds, of which `make test` takes two."""
    return [seed if seed < 2 else pytest.param(seed, marks=pytest.mark.long) for seed in range(number)]


async def send(server: Live, token: str, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """Send a request whose caller waits for no review."""
    return await server.ask(method, path, token, headers={"prefer": "wait=0"}, **more)


async def add_models(server: Live, fake: FakeUpstream) -> None:
    for name, review in (("free", "never"), ("held", "always")):
        await server.model(name, kind="openai", url=fake.at("remember"), review=review, cache="never")
    await server.model("person", kind="person")
    await server.model("down", kind="openai", url=fake.at("broken"), attempts=1, fallbacks=("person",), cache="never")


async def ended(server: Live, token: str, job_id: str) -> dict[str, Any]:
    return await server.job_when(token, job_id, lambda job: job["status"] in {"success", "fail", "human"})


async def test_a_held_answer_does_not_come_back_through_a_conversation(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_models(server, fake)
        token = await server.token()
        _, conversation = await send(server, token, "POST", "/v1/conversations", json={}, params={"model": "free"})
        body = {"input": "q", "conversation": conversation["id"]}
        status, answer = await send(server, token, "POST", "/v1/responses", json=body | {"model": "held"})
        assert (status, answer["error"]["code"]) == (504, "review_pending")
        path = f"/v1/conversations/{conversation['id']}/items"
        for name in (conversation["id"], {"id": conversation["id"]}):
            again = {"model": "free", "input": "repeat", "conversation": name}
            for status, answer in (
                await send(server, token, "GET", path),
                await send(server, token, "POST", "/v1/responses", json=again),
                await send(server, token, "POST", "/v1/responses", json=again | {"stream": True}),
            ):
                assert (status, answer["error"]["code"]) == (504, "review_pending")
        # and after a rejection it stays so
        [held] = [
            job for job in await server.services.store.jobs.list(JobFilter(status="human")) if job.model == "held"
        ]
        await decide(server.services, REVIEWER, held.id, VerdictRequest(verdict="reject", reason="no"))
        assert (await send(server, token, "GET", path))[0] == 504


async def test_a_job_for_later_is_judged_again_when_it_is_claimed(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_models(server, fake)
        token = await server.token()
        _, conversation = await send(server, token, "POST", "/v1/conversations", json={}, params={"model": "free"})
        native = {"path": "/v1/responses", "target": "free", "due_at": "2999-01-01T00:00:00Z"}
        body = {"input": "later", "conversation": conversation["id"]}
        _, names_it = await send(server, token, "POST", "/api/jobs", json=native | {"body": body})
        _, plain = await send(server, token, "POST", "/api/jobs", json=native | {"body": {"input": "q"}})
        _, done = await send(
            server, token, "POST", "/api/jobs", json={**native, "due_at": None, "body": {"input": "q"}}
        )
        assert (await ended(server, token, done["job_id"]))["status"] == "success"
        # when a held answer comes into the conversation before the first job is due
        assert (await send(server, token, "POST", "/v1/responses", json=body | {"model": "held"}))[0] == 504
        await make_due(server, names_it["job_id"])
        assert (await ended(server, token, names_it["job_id"]))["status"] == "human"
        # or when the model itself comes under review before the second one is
        await server.model("free", kind="openai", url=fake.at("remember"), review="always", cache="never")
        await make_due(server, plain["job_id"])
        assert (await ended(server, token, plain["job_id"]))["status"] == "human"
        # then a retry of an earlier answer is held as well
        _, retry = await send(server, token, "POST", f"/api/jobs/{done['job_id']}/retry")
        assert (await ended(server, token, retry["job_id"]))["status"] == "human"


async def make_due(server: Live, job_id: str) -> None:
    await execute(server.services.store, sa.update(jobs).where(jobs.c.id == job_id).values(due_at=0))
    server.services.adapters.broker.notify(job_id, 5)


async def make_released(server: Live, job_id: str) -> None:
    await execute(server.services.store, sa.update(jobs).where(jobs.c.id == job_id).values(release_at=1))


class Story:
    """A random sequence of requests of one user, and of verdicts, over an upstream that remembers.

    A person who approves an answer signs all that it contains, and one who edits it withdraws the secret in it. What a
    person writes in place of a model is signed, and a draft is not.
    """

    def __init__(self, server: Live, token: str, seed: int, admin: str | None = None) -> None:
        self.server = server
        self.admin = admin
        usual = ["free", "held", "free", "held", "person", "down"]
        self.models = usual if admin is None else ["free", "held", "judged", "judged"]
        self.token = token
        self.random = Random(seed)
        self.conversations = list[str]()
        self.responses = list[str]()
        self.messages = list[str]()
        self.jobs = list[str]()
        self.signed = set[str]()
        self.withdrawn = set[str]()
        self.written = 0
        self.verdicts = list[str]()
        self.checked = 0
        self.operations = Counter[str]()
        self.more_steps = list[Callable[[], Awaitable[None]]]()

    async def run(self) -> None:
        for number in range(STEPS):
            steps = [self.converse, self.converse, self.ask, self.ask, self.ask, self.enqueue, self.read, self.read]
            policies = [] if self.admin is None else [self.change_policy]
            verdicts = [self.decide, self.decide, self.decide]
            step = self.random.choice([*steps, self.retry, *verdicts, *policies, *self.more_steps])
            also = self.random.choice([None, None, self.ask, self.read])
            await asyncio.gather(step(), *([also()] if also else []))
            if number % STEPS_TO_A_LOOK == STEPS_TO_A_LOOK - 1:
                await self.look_at_all_jobs()

    async def go_on(self, has_told_enough: Callable[[], bool]) -> None:
        """Take further steps until the story has told enough, as one in which nothing happens would find nothing."""
        steps = [self.ask, self.enqueue, self.decide, self.read]
        steps += [] if self.admin is None else [self.change_policy]  # the last one may let nothing pass
        for _ in range(10 * STEPS):
            if has_told_enough():
                return
            await self.random.choice(steps)()
        assert has_told_enough()

    def body(self) -> dict[str, Any]:
        """Return a request that names some of what there is."""
        model = self.random.choice(self.models)
        body: dict[str, Any] = {"model": model, "input": "tell me"}
        if self.random.random() < 0.4:
            body["tools"] = TOOLS
        how = self.random.choice(["new", "conversation", "conversation", "response", "item"])
        if how == "conversation" and self.conversations:
            name = self.random.choice(self.conversations)
            body["conversation"] = self.random.choice([name, {"id": name}])
        elif how == "response" and self.responses:
            body["previous_response_id"] = self.random.choice(self.responses)
        elif how == "item" and self.messages:
            body["input"] = [{"type": "item_reference", "id": self.random.choice(self.messages)}]
        return body

    async def converse(self) -> None:
        model = self.random.choice(["free", "free", "held"])
        _, answer = await send(self.server, self.token, "POST", "/v1/conversations", json={}, params={"model": model})
        await self.take(answer)

    async def ask(self) -> None:
        body = self.body() | {"stream": self.random.random() < 0.3}
        _, answer = await send(self.server, self.token, "POST", "/v1/responses", json=body)
        await self.take(answer)

    async def enqueue(self) -> None:
        body = self.body()
        native = {"path": "/v1/responses", "target": body.pop("model"), "body": body}
        _, job = await send(self.server, self.token, "POST", "/api/jobs", json=native)
        self.jobs += [job["job_id"]] if "job_id" in job else []

    async def retry(self) -> None:
        if self.jobs:
            await send(self.server, self.token, "POST", f"/api/jobs/{self.random.choice(self.jobs)}/retry")

    async def change_policy(self) -> None:
        """Save another version of the policy of `judged`, or put `free` under one, or end that."""
        rules = [{"if": f'answer.text.matches("[{digits}][.]$")', "then": then} for digits, then in self.draw_rules()]
        for name, is_sure in (("judged", True), ("free", False)):
            if is_sure or self.random.random() < 0.2:
                body = {"target": name, "rules": rules}
                await self.server.ask("PUT", f"/api/policies/{name}", self.admin, json=body)
        if self.random.random() < 0.5:
            await self.server.ask("DELETE", "/api/policies/free", self.admin)

    def draw_rules(self) -> list[tuple[str, str]]:
        """Return digits at the end of an answer, and what happens to it."""
        digits = self.random.sample("0123456789", 6)
        return [("".join(digits[:3]), "hold"), ("".join(digits[3:]), "reject")]

    async def read(self) -> None:
        """Read an object, also one whose id the caller could only guess."""
        held = [job.upstream_object_id for job in await self.stored() if job.upstream_object_id]
        paths = [f"/v1/conversations/{each}/items" for each in self.conversations]
        paths += [f"/v1/responses/{each}" for each in [*self.responses, *held]]
        if paths:
            _, answer = await send(self.server, self.token, "GET", self.random.choice(paths))
            await self.take(answer)

    async def decide(self) -> None:
        job = await self.random_held(lambda job: votes_needed(job) == 1)
        if job is None:
            return
        verdict = self.random.choice(["approve", "edit", "edit", "draft", "reject", "redo"])
        edit, calls = Edit(), tool_calls_of(job.response, job.body)
        if verdict == "draft" or (job.response is None and verdict not in {"reject", "redo"}):
            self.written += 1
            edit = Edit(response=json.dumps(f"secret-9{self.written:06}"))
            self.signed |= {*secrets_in(edit.response or "")} if verdict != "draft" else set[str]()
        elif verdict == "edit":
            self.withdrawn |= own_secret(job) - self.signed
            change = self.random.choice([{"refuse": "No."}, {"arguments": {"secret": "none"}}])
            edit = Edit(response=json.dumps({"tool_calls": [{"id": calls[0].id} | change]} if calls else "Nothing."))
            # what the upstream repeats beside the call stays, and is signed
            self.signed |= {*secrets_in((job.response or b"").decode())[:-1]} if calls else set[str]()
        elif verdict == "redo":
            self.send_back(job)
        elif verdict == "approve":
            self.signed |= {*secrets_in((job.response or b"").decode())}
        self.verdicts.append(f"{verdict} {'person' if job.response is None else 'calls' if calls else 'text'}")
        with contextlib.suppress(Stale):
            if verdict == "draft":
                await save_draft(self.server.services, REVIEWER, job.id, edit)
                return
            chosen: Verdict = verdict if verdict in {"reject", "redo"} else "approve"  # type: ignore[assignment]
            request = VerdictRequest(verdict=chosen, reason="r", edit=edit)
            await decide(self.server.services, OTHERS[0] if self.more_steps else REVIEWER, job.id, request)

    def send_back(self, job: Job) -> None:
        """Remember that an answer is asked for again: what was answered before is withdrawn."""
        self.withdrawn |= own_secret(job) - self.signed
        self.operations["redo"] += 1

    async def vote(self) -> None:
        """Save a draft on an answer that needs several votes, look at it as another voter does, and vote."""
        job = await self.random_held(lambda job: votes_needed(job) > 1)
        if job is None:
            return
        services, voter = self.server.services, self.random.choice([REVIEWER, *OTHERS])
        with contextlib.suppress(Stale):
            if self.random.random() < 0.5:
                self.written += 1
                draft = f"secret-8{self.written:06}"
                await save_draft(services, voter, job.id, Edit(response=json.dumps(draft)))
                for other in {REVIEWER, *OTHERS} - {voter}:
                    assert draft not in await self.seen_by(other, job.id)
                assert draft in await self.seen_by(voter, job.id)
                self.operations["draft of a voter"] += 1
                await save_draft(services, voter, job.id, Edit(response=job.response.decode()))  # type: ignore[union-attr]
            if len(await services.store.reviews.votes(job.id, job.round)) + 1 >= votes_needed(job):
                self.signed |= {*secrets_in((job.response or b"").decode())}
            await decide(services, voter, job.id, VerdictRequest(verdict="approve", round=job.round))
            self.operations["vote"] += 1

    async def seen_by(self, reviewer: Caller, job_id: str) -> str:
        """Return all that a reviewer can read of a job."""
        services = self.server.services
        job = await load_held(services, reviewer, job_id)
        events = [event.data for event in await list_events(services, reviewer, job_id)]
        item = item_as_json(job, 0, reviewer=reviewer.email, asker=None, votes_cast=0, votes=[])
        shown = await get_job(services, reviewer, job_id)
        return str([job, item, events, job_as_json(shown)])

    async def undo(self) -> None:
        """Decide on an answer, and withdraw the verdict before it takes effect: nothing is signed."""
        job = await self.random_held(lambda job: votes_needed(job) == 1 and job.response is not None)
        if job is None:
            return
        services = self.server.services
        with contextlib.suppress(Stale):
            request = VerdictRequest(verdict="approve", round=job.round, release_seconds=600)
            await decide(services, OTHERS[0], job.id, request)
            await self.look_at_all_jobs()
            await self.read()
            await undo_verdict(services, OTHERS[0], job.id)
            self.operations["undo"] += 1

    async def decide_in_bulk(self) -> None:
        """Select answers, apply the verdict or undo it; audits and votes stay out."""
        services = self.server.services
        filters = await with_queues(services, OTHERS[1], None, ReviewFilter(queues=(), limit=100))
        verdict: Verdict = self.random.choice(["approve", "reject", "redo"])
        selection = BulkSelection(filters=filters, verdict=verdict, reason="r")
        bulk = await select_bulk(services, OTHERS[1], selection)
        jobs = {job.id: job for job in await self.stored()}
        assert not [item for item in bulk.items if stays_out_of_bulk(jobs[item.job_id])]
        is_undone = self.random.random() < 0.3
        for item in [] if is_undone else bulk.items:
            if verdict == "approve":
                self.signed |= {*secrets_in((jobs[item.job_id].response or b"").decode())}
            elif verdict == "redo":
                self.send_back(jobs[item.job_id])
        await apply_bulk(services, OTHERS[1], bulk.id)
        if is_undone:
            await undo_bulk(services, OTHERS[1], bulk.id)
        else:
            await self.release()
        self.operations[f"bulk {verdict}"] += len(bulk.items)

    async def release(self) -> None:
        """Let the verdicts of bulk decisions take effect, which they do after the time of the desk."""
        for job in await self.stored():
            if job.status == "human" and job.decision is not None and job.release_at is not None:
                await make_released(self.server, job.id)
                with contextlib.suppress(Stale):
                    await release_verdict(self.server.services, job)

    async def cancel(self) -> None:
        """Cancel a held job; if it is under audit, reviewers go on with a copy."""
        job = await self.random_held(lambda job: job.copy_of is None)
        if job is not None:
            await send(self.server, self.token, "DELETE", f"/api/jobs/{job.id}")
            self.operations["cancel"] += 1

    async def random_held(self, matches: Callable[[Job], bool]) -> Job | None:
        held = [job for job in await self.stored() if job.status == "human" and job.release_at is None and matches(job)]
        return self.random.choice(held) if held else None

    async def take(self, answer: Any) -> None:
        """Remember the ids of an answer, and check that none of its texts is unsigned."""
        text = answer if isinstance(answer, str) else json.dumps(answer)
        self.conversations += [
            each for each in re.findall(r"conv_[0-9a-f]{32}", text) if each not in self.conversations
        ]
        self.responses += [each for each in re.findall(r"resp_[0-9a-f]{32}", text) if each not in self.responses]
        self.messages += [each for each in re.findall(r"msg_[0-9a-f]{32}", text) if each not in self.messages]
        await self.check(text)

    async def look_at_all_jobs(self) -> None:
        _, page = await send(self.server, self.token, "GET", "/api/jobs")
        texts = list[Any]()
        for job in page["data"]:
            path = f"/api/jobs/{job['job_id']}"
            texts += [await send(self.server, self.token, "GET", path + more) for more in ("", "/events")]
            if job["status"] in {"success", "fail"}:  # a stream of events, which ends with the job
                texts.append(await self.server.ask("GET", f"{path}/events", self.token, headers=STREAM))
        await self.check(json.dumps(texts))

    async def check(self, text: str) -> None:
        secrets = secrets_in(text)
        self.checked += len(secrets)
        stored = await self.stored()
        waiting = [job for job in stored if job.policy.may_hold and not is_passed(job)]
        # One who may read a text may read it again, although a rule or a coin holds the copy that a later request got.
        passed = {secret for job in stored if is_passed(job) for secret in secrets_in((job.response or b"").decode())}
        held = {secret for job in waiting for secret in own_secret(job)}
        drafts = {secret for job in waiting for secret in secrets_in(str(job.draft))}
        assert not {*secrets} & ((held | drafts | self.withdrawn) - self.signed - passed)

    async def audits(self) -> set[bool]:
        """Return True if the error budget has chosen an answer for an audit, and False if it has let one pass."""
        rulings = [job.ruling for job in await self.stored() if job.ruling is not None]
        return {ruling.coin.is_audit for ruling in rulings if ruling.coin is not None}

    async def outcomes(self) -> Counter[str]:
        """Return how often policies let an answer pass, held it and rejected it."""
        return Counter(job.ruling.outcome for job in await self.stored() if job.ruling is not None)

    async def stored(self) -> list[Job]:
        return await self.server.services.store.jobs.list(JobFilter(limit=1000))


def is_passed(job: Job) -> bool:
    """Return True if a rule has signed the answer of the job off."""
    return job.status == "success" and job.ruling is not None and job.ruling.outcome == "pass"


def secrets_in(text: str) -> list[str]:
    """Return the secrets in a text, in order."""
    return re.findall(r"secret-\d+", text)


def own_secret(job: Job) -> set[str]:
    """Return the secret that a model has told in this answer, after those that it has repeated.

    There is none in what an object at the upstream says when it is read, as it repeats the answers of other jobs.
    """
    text = (job.response or b"").decode()
    return {*secrets_in(text)[-1:]} if '"output"' in text else set()


@pytest.mark.parametrize("seed", seeds(8))
async def test_no_text_that_waits_for_a_review_is_readable_by_its_caller(seed: int, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_models(server, fake)
        story = Story(server, await server.token(), seed)
        await story.run()
        await story.go_on(lambda: story.checked > STEPS // 4)
        await story.go_on(lambda: any(verdict.startswith("edit") for verdict in story.verdicts))


@pytest.mark.parametrize("seed", seeds(8))
async def test_no_text_that_policies_hold_or_reject_is_readable_by_its_caller(seed: int, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_models(server, fake)
        await server.model("judged", kind="openai", url=fake.at("remember"), cache="never")
        story = Story(server, await server.token(), seed, await server.token("admin"))
        await story.change_policy()
        for number in range(10):  # secrets have consecutive numbers, so each last digit occurs
            body = {"model": "judged", "input": f"tell me {number}"}  # an equal one would get the answer that is held
            await story.take((await send(server, story.token, "POST", "/v1/responses", json=body))[1])
        assert await story.outcomes() == {"pass": 4, "hold": 3, "reject": 3}
        await story.run()
        await story.go_on(lambda: story.checked > STEPS)


AUDITED = {"answers": 400, "share": 0.5, "audit_rate": 0.4}


@pytest.mark.parametrize("seed", seeds(8))
async def test_no_text_is_readable_before_its_verdict_whatever_the_desk_does(seed: int, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, release_after_seconds=600) as server:
        await add_models(server, fake)
        admin = await server.token("admin")
        policies = {"voted": {"default": {"then": "hold", "votes": 2}}, "audited": {"budget": AUDITED}}
        for name, policy in policies.items():
            await server.model(name, kind="openai", url=fake.at("remember"), cache="never")
            status, answer = await server.ask("PUT", f"/api/policies/{name}", admin, json={"target": name} | policy)
            assert status == 200, answer
        story = Story(server, await server.token(), seed)
        story.models = ["free", "held", "held", "voted", "voted", "audited", "audited"]
        story.more_steps = [story.vote, story.vote, story.undo, story.decide_in_bulk, story.cancel]
        await story.run()
        for operation, step in {
            "vote": story.vote,
            "draft of a voter": story.vote,
            "undo": story.undo,
            "bulk approve": story.decide_in_bulk,
            "bulk reject": story.decide_in_bulk,
            "bulk redo": story.decide_in_bulk,
            "cancel": story.cancel,
        }.items():
            for _ in range(STEPS):
                if story.operations[operation]:
                    break
                await story.ask()
                await step()
            assert story.operations[operation], operation
        await story.look_at_all_jobs()
        assert story.checked
        story.models = ["audited"]
        while await story.audits() != {True, False}:
            assert story.operations["further request"] < STEPS
            story.operations["further request"] += 1
            await story.ask()
