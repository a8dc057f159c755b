"""Setting of a round: its servers, proxies, models, users and processes, from setup to cleanup."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from random import Random

from fakes.tcp_proxy import TcpProxy
from fakes.upstream import FakeUpstream
from fakes.webhook_receiver import SECRET
from faults.cluster import OURS, Cluster, Kind, Member, Program
from faults.history import History
from faults.on_services import QUEUE
from faults.servers import RabbitMQ, Server, postgres, redis
from faults.tables import Tables
from faults.upstream import models
from faults.world import World
from signoff.server.bootstrap import migrate, open_services
from signoff.settings import Settings
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.registry import register_model
from signoff.work.services import Services
from support.processes import clean_environment
from upgrades.last_release import last_release

CONCURRENCY = 8
UNDO_SECONDS = 0.4
DISK_MB = 96
REVIEWERS = 3
VARIABLES = {"postgres": "SIGNOFF_DATABASE_URL", "rabbitmq": "SIGNOFF_AMQP_URL", "redis": "SIGNOFF_REDIS_URL"}
COMMON_SETTINGS = {
    "SIGNOFF_LATER_ATTEMPTS": "60",
    "SIGNOFF_CONCURRENCY": str(CONCURRENCY),
    "SIGNOFF_BACKOFF_SECONDS": "0.05",
    "SIGNOFF_BACKOFF_CEILING_SECONDS": "1",
    "SIGNOFF_DRAIN_SECONDS": "2",
    "SIGNOFF_WEBHOOK_ALLOW": '["127.0.0.0/8"]',
    "SIGNOFF_WEBHOOK_SECRET": SECRET,
    "SIGNOFF_WEBHOOK_WAITS_SECONDS": str([0.2] + [1] * 60),
    "SIGNOFF_QUEUE_NAME": QUEUE,
}


@contextlib.asynccontextmanager
async def with_servers(
    folder: Path,
    history: History,
    rng: Random,
    *,
    servers: int,
    workers: int,
    mutation: str,
    of_last_release: Kind | None = None,
) -> AsyncIterator[World]:
    """Yield a world with its own servers, in which each process has its own proxies to them.

    The processes of the kind `of_last_release` run the code of the last release. Raises MissingError, NotBuiltError.
    """
    programs = {} if of_last_release is None else {of_last_release: _last_release()}
    async with contextlib.AsyncExitStack() as stack:
        database, rabbit = await asyncio.to_thread(postgres, folder / "postgres"), RabbitMQ(folder / "rabbitmq")
        redis_server = await asyncio.to_thread(redis, folder / "redis")
        servers_by_name: dict[str, Server] = {"postgres": database, "rabbitmq": rabbit, "redis": redis_server}
        stack.push_async_callback(rabbit.end_epmd)
        await rabbit.start_epmd()
        async with asyncio.TaskGroup() as group:
            for server in servers_by_name.values():
                stack.push_async_callback(server.end)
                group.create_task(server.start())
        proxies, members = dict[str, dict[str, TcpProxy]](), list[Member]()
        for kind, number in _slots(servers, workers):
            own_proxies = {
                name: await stack.enter_async_context(TcpProxy(server.url)) for name, server in servers_by_name.items()
            }
            urls = {VARIABLES[name]: proxy.url for name, proxy in own_proxies.items()}
            environment = _environment(folder, mutation, number) | urls
            program = programs.get(kind, OURS)
            members.append(Member(kind, number, folder, environment, "--no-work", program=program))
            proxies[members[-1].name] = own_proxies
        world = World(
            folder=folder,
            rng=rng,
            history=history,
            tables=Tables(database.url),
            cluster=Cluster(members, history),
            postgres=database,
            rabbitmq=rabbit,
            redis=redis_server,
            proxies=proxies,
        )
        yield await stack.enter_async_context(_closed(world))


def _slots(servers: int, workers: int) -> Iterator[tuple[Kind, int]]:
    yield from (("server", number) for number in range(servers))
    yield from (("worker", number) for number in range(workers))


def _last_release() -> Program:
    release = last_release()
    return Program(release.launcher, str(release.tests))


@contextlib.asynccontextmanager
async def embedded(
    folder: Path, history: History, rng: Random, *, servers: int, workers: int, mutation: str
) -> AsyncIterator[World]:
    """Yield a world with one SQLite file, on its own small disk if one can be mounted."""
    with _small_disk(folder / "disk") as is_small:
        url = f"sqlite:///{folder / 'disk' / 'signoff.db'}"
        environment = _environment(folder, mutation, 0) | {VARIABLES["postgres"]: url}
        members = [Member("server", number, folder, environment) for number in range(servers)]
        members += [Member("worker", number, folder, environment) for number in range(workers)]
        world = World(
            folder=folder,
            rng=rng,
            history=history,
            tables=Tables(url),
            cluster=Cluster(members, history),
            disk=folder / "disk" if is_small else None,
        )
        async with _closed(world):
            yield world


@contextlib.asynccontextmanager
async def _closed(world: World) -> AsyncIterator[World]:
    try:
        yield world
    finally:
        world.cluster.kill_all()
        await world.tables.close()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of DISK_MB at `folder`; yield False if it cannot be mounted and `folder` is a plain directory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "faults", str(folder)]
    is_small = has_own_mounts() and subprocess.run(command, check=False).returncode == 0
    try:
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def has_own_mounts() -> bool:
    """Return True if this process runs in its own mount namespace."""
    return os.environ.get("FAULTS_OWN_MOUNTS") == "1"


def _environment(folder: Path, mutation: str, number: int) -> dict[str, str]:
    """Return the environment of a process. Verdicts on jobs of the second server can be undone for UNDO_SECONDS."""
    undo = {"SIGNOFF_RELEASE_AFTER_SECONDS": str(UNDO_SECONDS if number == 1 else 0)}
    return clean_environment(folder / "data", **COMMON_SETTINGS, **undo, FAULTS_MUTATION=mutation)


async def create_users(world: World, upstream: FakeUpstream, url: str) -> tuple[str, Mapping[str, str]]:
    """Create the schema, the models and the users; return a caller's token, and the reviewers' tokens by email."""
    settings = Settings(data_dir=world.folder / "data", database_url=url)
    await migrate(settings)
    async with open_services(settings) as services:
        for model in models(upstream):
            await register_model(services, model)
        reviewers = {f"reviewer-{number}@example.com": "" for number in range(REVIEWERS)}
        for email in reviewers:
            reviewers[email] = await create_token(services, await create_user(services, email, "reviewer"))
        return await _caller_token(services), reviewers


async def _caller_token(services: Services) -> str:
    return await create_token(services, await create_user(services, "caller@example.com", "user"))


def address_of(world: World) -> str:
    """Return the URL of the database, without a proxy."""
    if world.postgres is not None:
        return world.postgres.url
    return f"sqlite:///{world.folder / 'disk' / 'signoff.db'}"
