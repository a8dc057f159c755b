"""The world of a round: everything that runs in it, and what the nemesis may lay hands on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fakes.tcp_proxy import TcpProxy
from faults.cluster import Cluster, Member
from faults.history import History
from faults.servers import RabbitMQ, Server
from faults.tables import Tables

LEASE_SECONDS = 2.0
POLL_SECONDS = 0.05
BUSY_SECONDS = 3.0


@dataclass(kw_only=True)
class World:
    """What there is. PostgreSQL, RabbitMQ, Redis and the wires to them only where the data is not in a file."""

    folder: Path
    random_float: Random
    history: History
    tables: Tables
    cluster: Cluster
    open_requests: Counter[str] = field(default_factory=Counter[str])
    """How many requests of callers each server has not answered yet."""
    postgres: Server | None = None
    rabbitmq: RabbitMQ | None = None
    redis: Server | None = None
    wires: dict[str, dict[str, TcpProxy]] = field(default_factory=dict[str, dict[str, TcpProxy]])
    """For each process, one to each of its servers."""
    disk: Path | None = None
    """A small one, where the data is."""

    async def busy_worker(self) -> Member:
        """A worker that has a job in its hands; any, if none has one soon."""
        busy = list[Member]()

        async def look() -> bool:
            in_hand = [await self.tables.in_hand(worker.actor) for worker in self.cluster.workers]
            busy[:] = [worker for worker, jobs in zip(self.cluster.workers, in_hand, strict=True) if len(jobs) > 1]
            return bool(busy)

        await until(look, BUSY_SECONDS)
        return self.random_float.choice(busy or self.cluster.workers)

    def any_worker(self) -> Member:
        """One of the workers."""
        return self.random_float.choice(self.cluster.workers)

    def any_server(self) -> Member:
        """One of the servers."""
        return self.random_float.choice(self.cluster.servers)

    @property
    def every_wire(self) -> list[TcpProxy]:
        """All wires of all processes."""
        return [wire for wires in self.wires.values() for wire in wires.values()]

    def mend_wires(self) -> None:
        """Whatever was done to them is over: every connection is made anew."""
        for wire in self.every_wire:
            wire.unblock()
            wire.cut()

    async def until_moved(self, jobs: list[str], seconds: float) -> bool:
        """Whether one of `jobs`, which were not answered, is so within that time."""

        async def moved() -> bool:
            return bool(set(jobs) - set(await self.tables.waiting(10_000)))

        return not jobs or await until(moved, seconds)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether it holds within that time; it is looked at again and again."""
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
