"""Simulated people: users who submit, wait, cancel and leave, and reviewers who compete for the same jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from signoff.core.access import Caller, Role
from signoff.core.ask import CHAT, Ask
from signoff.core.cache import CacheControl
from signoff.core.delivery import WebhookTarget
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job, Verdict
from signoff.work import call, submit
from signoff.work.admit import _fingerprint as fingerprint_of
from signoff.work.jobs import cancel, query, redeliver, retry
from signoff.work.reviews import desk as review
from signoff.work.reviews.leases import LockAction, lock_for_review
from signoff.work.services import Services
from simulation.checker import Checker
from simulation.loop import World
from simulation.outside import body_of
from simulation.process import Process, Verb
from support.sinks import Events

T = TypeVar("T")
PATIENCE_SECONDS = 30.0
HOSTS = 3
REPEATED = 4


class Person:
    """A person with a token, who calls any process and tolerates errors."""

    def __init__(self, number: int, role: Role, world: World, processes: Sequence[Process], checker: Checker) -> None:
        email = f"{role}{number}@example.com"
        self.caller = Caller(user_id=number, token_id=number, role=role, email=email)
        self.random_float = world.random_float
        self._processes = processes
        self._checker = checker
        self._world = world

    async def ask(self, operation: str, verb: Verb[T], patience_seconds: float = PATIENCE_SECONDS) -> T | None:
        """Return the result of `verb` in one of the processes; None if it fails."""
        up = [process for process in self._processes if process.is_up]
        target = self.random_float.choice(up if up and self.random_float.random() < 0.9 else self._processes)
        try:
            return await target.ask(verb, patience_seconds)
        except Exception as error:  # noqa: BLE001 -- the checker decides which errors callers may see
            self._checker.refused(self.caller.email, operation, error)
            return None

    async def see(self, operation: str, verb: Verb[Job], patience_seconds: float = PATIENCE_SECONDS) -> Job | None:
        """Return the result of `ask`, once the checker has checked it."""
        job = await self.ask(operation, verb, patience_seconds)
        if job is not None:
            self._checker.shown(self.caller, [job])
        return job

    async def pause(self, seconds: float) -> None:
        """Sleep for a random time, `seconds` on the average."""
        await asyncio.sleep(self.random_float.expovariate(1 / seconds))


class User(Person):
    """A person who requests answers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._job_ids = deque[str](maxlen=12)
        self._keys = deque[tuple[str, Ask]](maxlen=6)

    async def use(self) -> None:
        """Perform one random action after another, forever."""
        actions = [self._submit] * 6 + [self._call] * 4 + [self._reuse_key, self._wait, self._wait, self._get]
        actions += [self._cancel, self._retry, self._redeliver, self._follow, self._list, self._events]
        while True:
            await self.pause(0.15)
            await self.random_float.choice(actions)()

    def _random_ask(self, **changes: Any) -> Ask:
        number, random_float = self._world.number(), self.random_float
        hook = WebhookTarget(
            url=f"https://host{random_float.randrange(HOSTS)}.example/{random_float.choice(['hook', 'hook', 'gone'])}"
        )
        is_repeated = random_float.random() < 0.5
        text = f"ask again {random_float.randrange(REPEATED)}" if is_repeated else f"ask {number}"
        fields: dict[str, Any] = {
            "door": "simulation",
            "caller": self.caller,
            "body": body_of(text, stream=random_float.random() < 0.2),
            "cache": "always" if is_repeated else None,
            "cache_control": CacheControl(
                no_cache=random_float.random() < 0.1, max_age_seconds=random_float.choice([None, None, 5])
            ),
            "path": random_float.choice([CHAT, CHAT, "/v1/embeddings"]),
            "target": random_float.choice(["plain", "plain", "twice", "watched", None]),
            "priority": random_float.randrange(10),
            "idempotency_key": f"key {number}" if random_float.random() < 0.4 else None,
            "due_seconds": random_float.choice([0, 0, 0, 3]),
            "webhook": hook if random_float.random() < 0.4 else None,
        }
        return Ask(**(fields | changes))

    async def _submit(self) -> None:
        ask = self._random_ask()
        if ask.idempotency_key is not None:
            self._keys.append((ask.idempotency_key, ask))
        await self._send(ask)

    async def _send(self, ask: Ask) -> None:
        """Submit `ask`; with an idempotency key, which makes that safe, try up to three times."""
        for _ in range(3 if ask.idempotency_key else 1):
            job = await self.see("submit", lambda services: submit.submit(services, ask))
            if job is not None:
                self._check_accepted(job, ask)
                self._job_ids.append(job.id)
                return
            await self.pause(0.2)

    async def _reuse_key(self) -> None:
        """Use a key again: at several processes at once, with another body, or long after."""
        if not self._keys:
            return
        key, ask = self.random_float.choice(self._keys)
        other = self._random_ask(idempotency_key=key, target=ask.target, path=ask.path)
        asks = self.random_float.choice([[ask, ask, ask], [ask, other], [other]])
        async with asyncio.TaskGroup() as group:
            for keyed_ask in asks:
                group.create_task(self._send_keyed(keyed_ask))

    async def _send_keyed(self, ask: Ask) -> None:
        job = await self.see("submit again", lambda services: submit.submit(services, ask))
        if job is not None:
            self._check_accepted(job, ask)

    def _check_accepted(self, job: Job, ask: Ask) -> None:
        self._checker.accepted(job)
        same = job.idempotency_key is None or job.fingerprint == fingerprint_of(ask)
        self._checker.law(same, "a key joins the same ask only", job.id)

    async def _call(self) -> None:
        """Call a model and wait for its answer; with a key, sometimes in several processes at once."""
        ask = self._random_ask(lane="now", due_seconds=0, webhook=None, stream=self.random_float.random() < 0.4)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.random_float.choice([1, 1, 3]) if ask.idempotency_key else 1):
                group.create_task(self._call_once(ask))

    async def _call_once(self, ask: Ask) -> None:
        """Call once; one caller in five may give up before the answer."""
        patience = self.random_float.uniform(0, 3) if self.random_float.random() < 0.2 else 60
        result = await self.ask("call", lambda services: answer(services, ask), patience)
        if result is not None:
            job, body = result
            self._checker.answered(self.caller, job, body)

    async def _wait(self) -> None:
        if self._job_ids:
            job_id, seconds = self.random_float.choice(self._job_ids), self.random_float.uniform(0, 20)
            await self.see("wait", lambda services: query.wait_for_end(services, self.caller, job_id, seconds))

    async def _get(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            await self.see("look", lambda services: query.get_job(services, self.caller, job_id))

    async def _follow(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            seqs = await self.ask("follow", lambda services: _event_numbers(services, self.caller, job_id), 10)
            in_order = seqs is None or seqs == list(range(1, len(seqs) + 1))
            self._checker.law(in_order, "events come in order, each once", job_id, seqs)

    async def _events(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            events = await self.ask("events", lambda services: query.list_events(services, self.caller, job_id))
            self._checker.law(not any(event.data for event in events or ()), "nothing held is seen", job_id)

    async def _cancel(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            await self.see("cancel", lambda services: cancel.cancel(services, self.caller, job_id))

    async def _retry(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            job = await self.see("ask again", lambda services: retry.retry_job(services, self.caller, job_id))
            if job is not None:
                self._checker.accepted(job)

    async def _redeliver(self) -> None:
        if self._job_ids:
            job_id = self.random_float.choice(self._job_ids)
            deliveries = await self.ask(
                "deliveries", lambda services: redeliver.list_deliveries(services, self.caller, job_id)
            )
            for delivery in deliveries or ():
                await self.ask(
                    "resend",
                    lambda services, delivery=delivery: redeliver.redeliver(services, self.caller, delivery.id),
                )

    async def _list(self) -> None:
        filters = JobFilter(limit=20, newest_first=True)
        page = await self.ask("list", lambda services: query.list_jobs(services, self.caller, filters))
        self._checker.shown(self.caller, page or ())


async def answer(services: Services, ask: Ask) -> tuple[Job, bytes | None]:
    """Return the job and the answer of a waiting call, as a door reads it; the answer is None if it was streamed."""
    started = await call.begin_call(services, ask)
    body = await call.answer_call(services, started, Events())
    return started.job, body


async def _event_numbers(services: Services, caller: Caller, job_id: str) -> list[int]:
    async with contextlib.aclosing(query.follow_events(services, caller, job_id, 0)) as pages:
        return [event.seq async for page in pages for event in page]


class Reviewer(Person):
    """A person who reviews held jobs. While `is_diligent` is true, they decide every job that they open."""

    is_diligent = False

    async def review(self) -> None:
        """Review one held job after another, forever."""
        while True:
            await self.pause(0.5)
            held = await self._held(JobFilter(status="human", limit=10, newest_first=self.random_float.random() < 0.5))
            if held:
                await self._review_job(self.random_float.choice(held))

    async def _held(self, filters: JobFilter) -> list[Job]:
        page = await self.ask("reviews", lambda services: query.list_jobs(services, self.caller, filters))
        held = [job for job in page or () if job.status == "human"]
        self._checker.shown(self.caller, held)
        return held

    async def _review_job(self, job: Job) -> None:
        actions: list[Callable[[], Awaitable[Any]]] = [
            lambda: self._peek(job, "open"),
            lambda: self._peek(job, "leave"),
            lambda: self._draft(job),
            lambda: self._undo(job),
        ]
        if not self.is_diligent and self.random_float.random() < 0.5:
            await self.random_float.choice(actions)()
            await self.pause(0.3)
        if self.is_diligent or self.random_float.random() < 0.8:
            await self.pause(0.01 if self.is_diligent else self.random_float.choice([0.01, 3]))
            await self._decide(job)

    async def _peek(self, job: Job, peek: LockAction) -> None:
        await self.see(peek, lambda services: lock_for_review(services, self.caller, job.id, peek))

    async def _draft(self, job: Job) -> None:
        edit = Edit(response=msgspec.json.encode(f"draft {self._world.number()}").decode())
        await self.see("draft", lambda services: review.save_draft(services, self.caller, job.id, edit))

    async def _undo(self, job: Job) -> None:
        await self.see("undo", lambda services: review.undo_verdict(services, self.caller, job.id))

    async def _decide(self, job: Job) -> None:
        verdicts: list[Verdict] = ["approve"] if self.is_diligent else ["approve", "approve", "redo", "reject"]
        verdict = self.random_float.choice(verdicts)
        request = review.VerdictRequest(verdict=verdict, edit=self._edit(verdict), round=job.round)
        decided = await self.see("decide", lambda services: review.decide(services, self.caller, job.id, request))
        if decided is not None and decided.status == "success" and request.edit.response is None:
            self._checker.law(decided.response == job.response, "what was signed off is what was seen", job.id)
        if (
            decided is not None
            and decided.status == "human"
            and not self.is_diligent
            and self.random_float.random() < 0.25
        ):
            await self.pause(1)
            await self._undo(job)

    def _edit(self, verdict: Verdict) -> Edit:
        if self.is_diligent or self.random_float.random() < 0.6:
            return Edit()
        text = msgspec.json.encode(f"edited {self._world.number()}").decode()
        return Edit(response=text) if verdict == "approve" else Edit(payload=body_of(f"edited {text}").decode())
