"""Processes of a simulated server: gate, coins, counts and verdicts are those of the product.

What is left out is the storing of whole jobs, which would cost most of the time: the parts of the transitions that
count passes and audits are called directly.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import random
from types import SimpleNamespace
from typing import Any

import msgspec

from signoff.cache import CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.core.cache import CacheControl
from signoff.core.job import Job
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.core.reviews.rules import Budget, ReviewPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.infra.vault import Vault
from signoff.runtime.background import Background
from signoff.runtime.passes import Passes
from signoff.runtime.response_cache import ResponseCache
from signoff.store import TransitionRequest
from signoff.work.inference.caching import lookup_answer, store_answer
from signoff.work.reviews.budget import apply_budget
from simulation.budgets import check_pass, record_coin, record_verdict
from simulation.store import MemoryStore, Near
from simulation.tables import Operation, Tables
from support.stores import ANSWER, a_job

PASS = Ruling(outcome="pass")
CACHE = CacheBounds(ttl_seconds=1e6, max_entries=100, max_bytes=1 << 20)
ASK: Any = SimpleNamespace(cache_control=CacheControl(), due_seconds=0)
# Largest number of steps that the other callers take between two steps of one.
MAX_PAUSE = 3


class Tally(msgspec.Struct):
    """Tally of a run. The simulation knows which answers are wrong; the server learns it from verdicts only."""

    answers: int = 0
    delivered: int = 0
    wrong_delivered: int = 0
    held: int = 0


class Late(Near):
    """Connection whose requests and replies take their time, in which other callers take some steps."""

    def __init__(self, tables: Tables, clock: Any, chance: random.Random) -> None:
        super().__init__(tables, clock)
        self._chance = chance

    def send(self, operation: Operation, *, writes: bool) -> asyncio.Future[Any]:
        """See `Connection`."""
        return asyncio.ensure_future(self._send(operation, writes=writes))

    async def _send(self, operation: Operation, *, writes: bool) -> Any:
        await self.pause()
        reply = await super().send(operation, writes=writes)
        await self.pause()
        return reply

    async def pause(self) -> None:
        """Let the other callers take some steps."""
        for _ in range(self._chance.randint(0, MAX_PAUSE)):
            await asyncio.sleep(0)


class Deployment:
    """Processes that share a database, with a policy that has an error budget.

    If there are several, the steps of concurrent callers interleave in an order that `seed` determines.
    """

    def __init__(self, seed: int, budget: Budget, processes: int = 1) -> None:
        self.tables = Tables()
        self.policy = ReviewPolicy(name="p", version=1, target="m", budget=budget)
        self.tally = Tally()
        self.open_audits = list[Job]()
        self.is_wrong = dict[str, bool]()
        self._stored = dict[str, bool]()
        self._numbers, self._turns, self._now = itertools.count(), itertools.count(1), itertools.count(1)
        self._chance = None if processes == 1 else random.Random(seed)
        self._responses = ResponseCache(MemoryCache(CACHE, now=lambda: 0), Background(), ttl_seconds=CACHE.ttl_seconds)
        self._template = a_job(response=ANSWER, attempt=1)
        key = base64.urlsafe_b64encode(hashlib.sha256(b"%d" % seed).digest())
        self.processes = [self._process(number, Vault([key])) for number in range(processes)]

    def _process(self, number: int, vault: Vault) -> Any:
        leases = itertools.count()
        clock = self._now.__next__  # no lease lapses, however slow this machine is
        connection = Near(self.tables, clock) if self._chance is None else Late(self.tables, clock, self._chance)
        store = MemoryStore(self.tables, connection)
        passes = Passes(store.budgets, lambda: f"{number}-{next(leases)}")
        return SimpleNamespace(
            connection=connection,
            store=store,
            adapters=SimpleNamespace(vault=vault),
            caches=SimpleNamespace(responses=self._responses),
            runtime=SimpleNamespace(passes=passes, metrics=SimpleNamespace(looked_up=lambda *, is_hit: None)),
        )

    async def period(self) -> BudgetPeriod:
        """Return the present period."""
        period = await self.processes[0].store.budgets.period("p")
        assert period is not None
        return period

    def present(self, group: str) -> BudgetPeriod | None:
        """Return the stored period of a group, without its passes on their way."""
        number = self.tables.budget_groups.get("p", {}).get(group)
        return None if number is None else self.tables.budget_periods["p"][number - 1]

    def new_job(self, team: str | None = None) -> Job:
        """Return a new job, whose model has answered for the first time, with a value of its caller's metadata."""
        metadata = msgspec.json.encode(None if team is None else {"team": team})
        return msgspec.structs.replace(self._template, id=f"job-{next(self._numbers)}", metadata=metadata)

    def replay(self, job: Job) -> None:
        """Answer a caller once more with the stored answer of a job, which was counted when it left."""
        assert job.id in self._stored

    async def answer(
        self, job: Job, *, is_wrong: bool, holds: bool = False, decides: bool = True, tally: Tally | None = None
    ) -> bool:
        """Send an answer through the budget, and return True if it left without a review.

        Args:
            job: The job, with its round and its attempt; with a `cache_key` if the response cache may answer it.
            is_wrong: What a reviewer would say of the answer.
            holds: The rules hold the answer.
            decides: A reviewer decides at once; else the verdict of an audit stays open.
            tally: Tally that the answer counts in; None for that of the deployment.
        """
        tally = self.tally if tally is None else tally
        tally.answers += 1
        services = self.processes[next(self._turns) % len(self.processes)]
        self.is_wrong[job.id] = is_wrong
        if await lookup_answer(services, ASK, job) is not None or (not holds and await self._leaves(services, job)):
            self._stored[job.id] = is_wrong
            tally.delivered += 1
            tally.wrong_delivered += is_wrong
            return True
        tally.held += 1
        if decides and self.open_audits and self.open_audits[-1].id == job.id:
            self.decide(self.open_audits[-1], is_wrong=is_wrong)
        return False

    async def _leaves(self, services: Any, job: Job) -> bool:
        """Apply the budget to an answer that the rules let pass; return True if it leaves."""
        judged = await apply_budget(services, job, PASS, [self.policy])
        assert judged.ruling is not None
        if isinstance(services.connection, Late):
            await services.connection.pause()
        verb = "succeed" if judged.ruling.outcome == "pass" else "hold"
        request = TransitionRequest(verb=verb, actor="simulation", changes={"ruling": judged.ruling})
        self.tables.run(lambda tx: self._record(tx, judged, request), next(self._now))
        if verb == "succeed":
            store_answer(services, msgspec.structs.replace(judged, status="success"))
        elif judged.ruling.coin is not None and judged.ruling.coin.is_audit:
            self.open_audits.append(judged)
        return verb == "succeed"

    def decide(self, job: Job, *, is_wrong: bool) -> None:
        """Decide on an audited answer as a reviewer who is never mistaken does."""
        self.open_audits.remove(job)
        verb = "reject" if is_wrong else "approve"
        self.tables.run(lambda tx: record_verdict(self.tables, tx, job, verb), next(self._now))
        if verb == "approve":
            store_answer(self.processes[0], msgspec.structs.replace(job, status="success"))

    def _record(self, tx: Any, job: Job, request: TransitionRequest) -> None:
        check_pass(self.tables, request)
        record_coin(self.tables, tx, job, request)
