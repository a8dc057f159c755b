"""Processes of a simulated server: gate, coins, counts and verdicts are those of the product.

What is left out is the storing of whole jobs, which would cost most of the time: the parts of the transitions that
count passes and audits are called directly.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from types import SimpleNamespace
from typing import Any

import msgspec

from signoff.core.job import Job
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.core.reviews.rules import Budget, ReviewPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.infra.vault import Vault
from signoff.runtime.passes import Passes
from signoff.store import TransitionRequest
from signoff.work.reviews.budget import apply_budget
from simulation.budgets import check_pass, record_coin, record_verdict
from simulation.store import MemoryStore, Near
from simulation.tables import Tables
from support.stores import ANSWER, a_job

PASS = Ruling(outcome="pass")


class Tally(msgspec.Struct):
    """Tally of a run. The simulation knows which answers are wrong; the server learns it from verdicts only."""

    answers: int = 0
    delivered: int = 0
    wrong_delivered: int = 0
    held: int = 0


class Deployment:
    """Processes that share a database, with a policy that has an error budget."""

    def __init__(self, seed: int, budget: Budget, processes: int = 1) -> None:
        self.tables = Tables()
        self.policy = ReviewPolicy(name="p", version=1, target="m", budget=budget)
        self.tally = Tally()
        self.open_audits = list[Job]()
        self.is_wrong = dict[str, bool]()
        self._stored = dict[str, bool]()
        self._cached = dict[int, bool]()
        self._numbers, self._turns = itertools.count(), itertools.count(1)
        self._template = a_job(response=ANSWER, attempt=1)
        key = base64.urlsafe_b64encode(hashlib.sha256(b"%d" % seed).digest())
        self.processes = [self._process(number, Vault([key])) for number in range(processes)]

    def _process(self, number: int, vault: Vault) -> Any:
        leases = itertools.count()
        store = MemoryStore(self.tables, Near(self.tables, lambda: time.time_ns() // 1000))
        return SimpleNamespace(
            store=store,
            adapters=SimpleNamespace(vault=vault),
            runtime=SimpleNamespace(passes=Passes(store.budgets, lambda: f"{number}-{next(leases)}")),
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
        self, job: Job, *, is_wrong: bool, holds: bool = False, decides: bool = True, question: int | None = None
    ) -> bool:
        """Send an answer through the budget, and return True if it left without a review.

        Args:
            job: The job, with its round and its attempt.
            is_wrong: What a reviewer would say of the answer.
            holds: The rules hold the answer.
            decides: A reviewer decides at once; else the verdict of an audit stays open.
            question: Number of the request, if others make the same one and the cache may answer it.
        """
        self.tally.answers += 1
        if question in self._cached:
            self.tally.delivered += 1
            self.tally.wrong_delivered += self._cached[question]
            return True
        if question is not None:
            job = msgspec.structs.replace(job, cache="miss")
        if holds:
            self.tally.held += 1
            return False
        services = self.processes[next(self._turns) % len(self.processes)]
        judged = await apply_budget(services, job, PASS, [self.policy])
        assert judged.ruling is not None
        verb = "succeed" if judged.ruling.outcome == "pass" else "hold"
        request = TransitionRequest(verb=verb, actor="simulation", changes={"ruling": judged.ruling})
        self.tables.run(lambda tx: self._record(tx, judged, request), 0)
        self.is_wrong[job.id] = is_wrong
        if verb == "succeed":
            if question is not None and judged.cache == "miss":  # as `store_answer` looks at it
                self._cached[question] = is_wrong
            self._stored[job.id] = is_wrong
            self.tally.delivered += 1
            self.tally.wrong_delivered += is_wrong
            return True
        self.tally.held += 1
        if judged.ruling.coin is not None and judged.ruling.coin.is_audit:
            self.open_audits.append(judged)
            if decides:
                self.decide(judged, is_wrong=is_wrong)
                if question is not None and not is_wrong:  # a person has approved it
                    self._cached[question] = False
        return False

    def decide(self, job: Job, *, is_wrong: bool) -> None:
        """Decide on an audited answer as a reviewer who is never mistaken does."""
        self.open_audits.remove(job)
        verb = "reject" if is_wrong else "approve"
        self.tables.run(lambda tx: record_verdict(self.tables, tx, job, verb), 0)

    def _record(self, tx: Any, job: Job, request: TransitionRequest) -> None:
        check_pass(self.tables, request)
        record_coin(self.tables, tx, job, request)
