"""A run of the simulation: a seeded world, with faults for some steps and then without, until all queues are empty."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from signoff.core import access
from signoff.errors import SignoffError
from simulation.checker import Checker
from simulation.clock import Clock
from simulation.history import History
from simulation.loop import SimLoop, Violation, World
from simulation.nemesis import Nemesis
from simulation.network import Network
from simulation.process import Process
from simulation.tables import Tables
from simulation.users import Reviewer, User
from simulation.weather import Weather, climate_of

STEPS = 40_000
REST_SECONDS = 180.0
POLL_SECONDS = 0.5


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run. Equal seeds give equal results, in any process."""

    seed: int
    steps: int
    seconds: float
    rested_after_seconds: float
    digest: str
    counts: dict[str, int]


class Broken(AssertionError):
    """A broken law; the message names it, and the command that repeats the run."""


class Simulation:
    """A run with all its parts."""

    def __init__(
        self,
        seed: int,
        *,
        steps: int = STEPS,
        tables: Tables | None = None,
        aloud: bool = False,
        **climate_changes: Any,
    ) -> None:
        self.seed = seed
        self.world = World(seed)
        self.history = History(self.world, aloud=aloud)
        self._steps = steps
        climate_json = msgspec.json.encode(climate_changes).decode()
        self._climate_option = f" --climate '{climate_json}'" if climate_changes else ""
        climate = msgspec.structs.replace(climate_of(self.world.random_float), **climate_changes)
        self._outside = SimLoop(self.world, Clock(self.world.random_float, is_true=True))
        self.tables = tables or Tables()
        self.weather = Weather(self.world.random_float)
        network = Network(self.world, self._outside, self.weather, self.tables, vague_news=climate.vague_news)
        retention = climate.retention_seconds
        self.checker = Checker(self.world, self.history, self.tables, retention_seconds=retention)
        self.processes = [Process(f"p{number}", network, self.checker, climate) for number in range(climate.processes)]
        self._nemesis = Nemesis(network, self.history, climate, self.processes)
        self._users = [self._new_person(User, number, "user") for number in range(1, climate.users + 1)]
        self._reviewers = [self._new_person(Reviewer, 100 + number, "reviewer") for number in range(climate.reviewers)]
        self._rested_after = 0.0

    def run(self, story: Callable[[], Coroutine[Any, Any, None]] | None = None) -> RunResult:
        """Run `story`, by default a whole run, and return the result. Raises Broken."""
        log_config = structlog.get_config()
        structlog.configure(
            processors=[self._check_log_event], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
        )
        try:
            self.world.run((story or self._story)(), self._outside)
        except Violation as violation:
            raise Broken(self._failure_message(violation)) from violation
        finally:
            self._outside.kill()
            for process in self.processes:
                process.bury()
            self._outside.bury()
            structlog.configure(**log_config)
        return self._result()

    async def _story(self) -> None:
        users = [self._start_task(user.use()) for user in self._users]
        reviewers = [self._start_task(reviewer.review()) for reviewer in self._reviewers]
        while self.world.steps < self._steps:
            await asyncio.sleep(POLL_SECONDS)
        self._nemesis.stop()
        for task in users:
            task.cancel()
        for reviewer in self._reviewers:
            reviewer.is_diligent = True
        await self._rest()
        self.checker.at_end()
        for task in reviewers:
            task.cancel()
        await asyncio.sleep(0)

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the endless task of a person; an error in it fails the run."""
        task = self._outside.create_task(coroutine)
        task.add_done_callback(self._check_task)
        return task

    def _check_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.fail(error)

    async def _rest(self) -> None:
        """Wait until no work is left. Raises Violation after REST_SECONDS."""
        began = self.world.now
        while self._is_busy():
            self._rested_after = self.world.now - began
            if self._rested_after > REST_SECONDS:
                jobs = [(job.id, job.status) for job in self.tables.unfinished.values()]
                due = [delivery.id for delivery in self.tables.deliveries.values() if delivery.state == "due"]
                raise Violation(f"queues drain within {REST_SECONDS:.0f} s: {jobs[:5]} {due[:5]}")
            await asyncio.sleep(POLL_SECONDS)

    def _is_busy(self) -> bool:
        waits = any(delivery.state == "due" for delivery in self.tables.deliveries.values())
        return bool(self.tables.unfinished) or waits

    def _new_person(self, kind: Callable[..., Any], number: int, role: access.Role) -> Any:
        """Return a person, whose token is in the store."""
        email, digest = f"{role}{number}@example.com", f"digest of {number}"
        self.tables.users[email] = access.User(id=number, email=email, role=role)
        self.tables.tokens[digest] = access.Token(
            id=number, digest=digest, user_id=number, kind="api", name="", role=role
        )
        return kind(number, role, self.world, self.processes, self.checker)

    def _check_log_event(self, _: object, method: str, event: dict[str, Any]) -> Any:
        """Fail the run for an error that a process logs, unless it is one that callers may see."""
        error = event.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, SignoffError):
            self.world.fail(Violation(f"no fault of ours: {event['event']}: {error!r}"))
        raise structlog.DropEvent

    def _result(self) -> RunResult:
        return RunResult(
            seed=self.seed,
            steps=self.world.steps,
            seconds=round(self.world.now, 3),
            rested_after_seconds=round(self._rested_after, 3),
            digest=self.history.digest(),
            counts=dict(sorted(self.history.counts.items())),
        )

    def _failure_message(self, violation: Violation) -> str:
        command = f".venv/bin/python tests/simulate.py {self.seed} --steps {self._steps}{self._climate_option}"
        return f"{violation}\nseed {self.seed}, step {self.world.steps}, {self.world.now:.6f} s; again: {command}"
