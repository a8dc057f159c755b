"""Round of faults: clients send requests, the nemesis runs faults, the queues drain, and the checker checks."""

from __future__ import annotations

import asyncio
import contextlib
import math
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
from faults.clients import ANSWER_SECONDS, Callers, Client, HeldJobReader
from faults.history import History
from faults.hooks import FailingReceiver
from faults.nemesis import Fault, run_faults
from faults.reviewers import Reviewer
from faults.setting import CONCURRENCY, address_of, create_users
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
    concurrent_callers: int
    backlog: int
    """Callers pause while more jobs and deliveries than this are not finished."""
    verdicts_at_once: int = 1
    """The number of verdicts that each reviewer sends concurrently."""
    gap_seconds: float = 0.5
    seconds: float
    longest_pause_seconds: float
    """After the faults, the longest time in which no job and no delivery may end while some are left."""
    limit_seconds: float
    later: Mapping[str, int] = field(default_factory=lambda: LATER)
    jobs: int = 0
    kills: int = 0
    mutation: str = "none"


class EndCondition:
    """The condition that ends a round: its time, or its jobs and kills."""

    def __init__(self, plan: Round, callers: Callers, history: History) -> None:
        self._plan, self._callers, self._history = plan, callers, history
        self._deadline = time.monotonic() + plan.seconds

    def __call__(self) -> bool:
        """Return True if the round has had its time, or its jobs and kills."""
        if time.monotonic() > self._deadline:
            return True
        plan = self._plan
        has_counts = plan.jobs and self._callers.accepted >= plan.jobs and self._history.counts["killed"] >= plan.kills
        return bool(has_counts)


async def play(plan: Round, folder: Path, seed: int) -> Check:
    """Run the round in the empty `folder`, and check it. Raises TimeoutError if it does not end in time."""
    history = History(folder / "history.jsonl")
    rng = Random(seed)
    async with asyncio.timeout(plan.limit_seconds), contextlib.AsyncExitStack() as stack:
        setting = plan.setting(folder, history, rng, servers=plan.servers, workers=plan.workers, mutation=plan.mutation)
        world = await stack.enter_async_context(setting)
        history.record("began", seed=seed, disk=world.disk is not None, concurrency=CONCURRENCY)
        async with _clients(plan, world) as callers:
            await run_faults(world, plan.plan(world), EndCondition(plan, callers, history), plan.gap_seconds)
            await _drain(plan, world, callers)
            world.reset_proxies()
        await world.cluster.replace_ended()
        await world.cluster.stop()
        _record_breaches(world)
        history.record("ended")
        history.close()
        return await check(world.tables, history.path)


@contextlib.asynccontextmanager
async def _clients(plan: Round, world: World) -> AsyncIterator[Callers]:
    """Run the callers, reviewers, readers and the webhook receiver while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(fake_upstream())
        caller_token, reviewers = await create_users(world, upstream, address_of(world))
        await world.cluster.start()
        receiver = await stack.enter_async_context(FailingReceiver(world.history, Random(world.rng.random())))
        hook_url = f"{receiver.url}/hook"
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        )
        client, servers = Client(http, caller_token, world.open_requests), world.cluster.servers
        callers = Callers(
            client, servers, world.history, Random(world.rng.random()), hook_url=hook_url, later=plan.later
        )
        coroutines = [
            _pace_callers(plan, world, callers),
            HeldJobReader(client, servers, world.history, Random(world.rng.random())).read_forever(0.3),
        ]
        for email, token in reviewers.items():
            reviewer_client = Client(http, token, Counter())
            reviewer = Reviewer(email, reviewer_client, servers, world.history, Random(world.rng.random()))
            coroutines += [reviewer.review_forever() for _ in range(plan.verdicts_at_once)]
        async with asyncio.TaskGroup() as group:
            callers.tasks = [group.create_task(callers.send_forever()) for _ in range(plan.concurrent_callers)]
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            try:
                yield callers
            finally:
                for task in [*tasks, *callers.tasks]:
                    task.cancel()


async def _pace_callers(plan: Round, world: World, callers: Callers) -> None:
    """Pause the callers while the backlog is too long."""
    while True:
        with contextlib.suppress(Exception):  # while the database is down, the last state stays
            backlog = await world.tables.backlog()
            busy = backlog.bot + backlog.human + backlog.due > plan.backlog
            callers.may_send.clear() if busy and not callers.is_over.is_set() else callers.may_send.set()
        await asyncio.sleep(PACE_SECONDS)


async def _drain(plan: Round, world: World, callers: Callers) -> None:
    """Stop the callers, wait until all jobs and deliveries have ended, and record if they do not go on.

    The time for all of them depends on the machine, so only that for the next one is bounded.
    """
    began_at = time.monotonic()
    callers.is_over.set()
    callers.may_send.set()
    await asyncio.wait(callers.tasks, timeout=LAST_ANSWERS_SECONDS)
    left, backlog = math.inf, await world.tables.backlog()

    async def has_progressed() -> bool:
        nonlocal backlog
        backlog = await world.tables.backlog()
        return backlog.steps_left < left

    while not backlog.is_empty:
        left = backlog.steps_left
        if not await until(has_progressed, plan.longest_pause_seconds):
            world.history.record("undrained", seconds=time.monotonic() - began_at, backlog=str(backlog))
            return
    world.history.record("drained", seconds=time.monotonic() - began_at)


def _record_breaches(world: World) -> None:
    """Record the failed protections that the processes reported, and check the integrity of a SQLite file."""
    for member in world.cluster.members:
        broken = [line["broken"] for line in member.records() if "broken" in line]
        if broken:
            world.history.record("breach", name=member.name, broken=broken[0], times=len(broken))
    if world.postgres is None:
        with contextlib.closing(sqlite3.connect(address_of(world).removeprefix("sqlite:///"))) as database:
            if (result := database.execute("PRAGMA integrity_check").fetchone()) != ("ok",):
                world.history.record("breach", name="signoff.db", broken=str(result), times=1)
