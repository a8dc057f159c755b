"""Round of faults: clients send requests, the nemesis runs faults, the queues drain, and the checker checks."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp

from fakes.upstream import fake_upstream
from faults.checker import Check, check
from faults.clients import ANSWER_SECONDS, Asking, Line, Looking
from faults.history import History
from faults.hooks import FailingReceiver
from faults.nemesis import Fault, rage
from faults.reviewers import Reviewing
from faults.setting import CONCURRENCY, address_of, people
from faults.wishes import LATER
from faults.world import World, until

PACE_SECONDS = 0.2
LAST_ANSWERS_SECONDS = 30.0
Setting = Callable[..., AbstractAsyncContextManager[World]]
Plan = Callable[[World], Iterator[Fault]]


@dataclass(frozen=True, kw_only=True)
class Round:
    """The plan of a round in one setting.

    The nemesis stops at the end of its plan, after `seconds`, or after `jobs` and `kills`.
    """

    name: str
    setting: Setting
    plan: Plan
    servers: int
    workers: int
    askers: int
    backlog: int
    """Callers pause while more jobs and deliveries than this are not finished."""
    hands: int = 1
    """The number of verdicts that each reviewer sends concurrently."""
    gap_seconds: float = 0.5
    seconds: float
    drain_seconds: float
    limit_seconds: float
    later: Mapping[str, int] = field(default_factory=lambda: LATER)
    jobs: int = 0
    kills: int = 0
    mutation: str = "none"


class Enough:
    """The condition that ends a round: its time, or its jobs and kills."""

    def __init__(self, plan: Round, asking: Asking, history: History) -> None:
        self._plan, self._asking, self._history = plan, asking, history
        self._until = time.monotonic() + plan.seconds

    def __call__(self) -> bool:
        """Return True if the round has had its time, or its jobs and kills."""
        if time.monotonic() > self._until:
            return True
        plan = self._plan
        counted = plan.jobs and self._asking.accepted >= plan.jobs and self._history.counts["killed"] >= plan.kills
        return bool(counted)


async def play(plan: Round, folder: Path, seed: int) -> Check:
    """Run the round in the empty `folder`, and check it. Raises TimeoutError if it does not end in time."""
    history = History(folder / "history.jsonl")
    random_float = Random(seed)
    async with asyncio.timeout(plan.limit_seconds), contextlib.AsyncExitStack() as stack:
        setting = plan.setting(
            folder, history, random_float, servers=plan.servers, workers=plan.workers, mutation=plan.mutation
        )
        world = await stack.enter_async_context(setting)
        history.tell("began", seed=seed, disk=world.disk is not None, concurrency=CONCURRENCY)
        async with _crowd(plan, world) as asking:
            await rage(world, plan.plan(world), Enough(plan, asking, history), plan.gap_seconds)
            await _drained(plan, world, asking)
            world.mend_wires()
        await world.cluster.mend()
        await world.cluster.stop()
        _breaches(world)
        history.tell("ended")
        history.close()
        return await check(world.tables, history.path)


@contextlib.asynccontextmanager
async def _crowd(plan: Round, world: World) -> AsyncIterator[Asking]:
    """Run the callers, reviewers, readers and the webhook receiver while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(fake_upstream())
        caller, reviewers = await people(world, upstream, address_of(world))
        await world.cluster.start()
        receiver = await stack.enter_async_context(FailingReceiver(world.history, Random(world.random_float.random())))
        hook_url = f"{receiver.url}/hook"
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        )
        line, servers = Line(http, caller, world.open_requests), world.cluster.servers
        asking = Asking(
            line, servers, world.history, Random(world.random_float.random()), hook_url=hook_url, later=plan.later
        )
        others = [
            _pace(plan, world, asking),
            Looking(line, servers, world.history, Random(world.random_float.random())).look_for_ever(0.3),
        ]
        for email, token in reviewers.items():
            theirs = Line(http, token, Counter())
            reviewing = Reviewing(email, theirs, servers, world.history, Random(world.random_float.random()))
            others += [reviewing.review_for_ever() for _ in range(plan.hands)]
        async with asyncio.TaskGroup() as group:
            asking.tasks = [group.create_task(asking.ask_for_ever()) for _ in range(plan.askers)]
            tasks = [group.create_task(other) for other in others]
            try:
                yield asking
            finally:
                for task in [*tasks, *asking.tasks]:
                    task.cancel()


async def _pace(plan: Round, world: World, asking: Asking) -> None:
    """Pause the callers while the backlog is too long."""
    while True:
        with contextlib.suppress(Exception):  # while the database is down, the last state stays
            backlog = await world.tables.backlog()
            busy = backlog.bot + backlog.human + backlog.due > plan.backlog
            asking.may_ask.clear() if busy and not asking.is_over.is_set() else asking.may_ask.set()
        await asyncio.sleep(PACE_SECONDS)


async def _drained(plan: Round, world: World, asking: Asking) -> None:
    """Stop the callers, wait until all jobs have ended, and record whether that took too long."""
    began = time.monotonic()
    asking.is_over.set()
    asking.may_ask.set()
    await asyncio.wait(asking.tasks, timeout=LAST_ANSWERS_SECONDS)

    async def is_empty() -> bool:
        return (await world.tables.backlog()).is_empty

    is_drained = await until(is_empty, plan.drain_seconds)
    seconds = time.monotonic() - began
    if is_drained:
        world.history.tell("drained", seconds=seconds)
    else:
        world.history.tell("undrained", seconds=seconds, backlog=str(await world.tables.backlog()))


def _breaches(world: World) -> None:
    """Record the failed protections that the processes reported, and check the integrity of a SQLite file."""
    for member in world.cluster.members:
        broken = [line["broken"] for line in member.strikes() if "broken" in line]
        if broken:
            world.history.tell("breach", name=member.name, broken=broken[0], times=len(broken))
    if world.postgres is None:
        with contextlib.closing(sqlite3.connect(address_of(world).removeprefix("sqlite:///"))) as database:
            if (said := database.execute("PRAGMA integrity_check").fetchone()) != ("ok",):
                world.history.tell("breach", name="signoff.db", broken=str(said), times=1)
