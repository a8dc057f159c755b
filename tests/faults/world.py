"""World of a round: everything that runs in it, and that faults may affect."""

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
    """Everything that runs in a round. The servers and the proxies exist only if the data is not in a SQLite file."""

    folder: Path
    rng: Random
    history: History
    tables: Tables
    cluster: Cluster
    open_requests: Counter[str] = field(default_factory=Counter[str])
    """The number of open requests of callers by name of the server."""
    postgres: Server | None = None
    rabbitmq: RabbitMQ | None = None
    redis: Server | None = None
    proxies: dict[str, dict[str, TcpProxy]] = field(default_factory=dict[str, dict[str, TcpProxy]])
    """For each process, the proxies to its servers, by name."""
    disk: Path | None = None
    """The small disk with the data, if one is mounted."""

    async def busy_worker(self) -> Member:
        """Return a worker that has more than one job, or any worker if none has after BUSY_SECONDS."""
        busy = list[Member]()

        async def find_busy() -> bool:
            claimed = [await self.tables.leased_jobs(worker.actor) for worker in self.cluster.workers]
            busy[:] = [worker for worker, jobs in zip(self.cluster.workers, claimed, strict=True) if len(jobs) > 1]
            return bool(busy)

        await until(find_busy, BUSY_SECONDS)
        return self.rng.choice(busy or self.cluster.workers)

    def any_worker(self) -> Member:
        """Return a random worker."""
        return self.rng.choice(self.cluster.workers)

    def any_server(self) -> Member:
        """Return a random server."""
        return self.rng.choice(self.cluster.servers)

    @property
    def all_proxies(self) -> list[TcpProxy]:
        """Return all proxies of all processes."""
        return [proxy for proxies in self.proxies.values() for proxy in proxies.values()]

    def reset_proxies(self) -> None:
        """Unblock every proxy, and reset its connections."""
        for proxy in self.all_proxies:
            proxy.unblock()
            proxy.cut()

    async def wait_for_progress(self, jobs: list[str], seconds: float) -> bool:
        """Wait until one of the unanswered `jobs` is answered, and return True if that was in time."""

        async def has_progressed() -> bool:
            return bool(set(jobs) - set(await self.tables.waiting(10_000)))

        return not jobs or await until(has_progressed, seconds)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Poll a condition, and return True if it holds within `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
