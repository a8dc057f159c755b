"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils

from signoff.broker import Broker
from signoff.brokers import line
from signoff.brokers.local import LocalBroker
from signoff.brokers.rabbitmq import RabbitBroker
from signoff.core.address import Reach
from signoff.core.delivery import DeliveryKind
from signoff.core.keys import ALPHABET, SECRET_LENGTH
from signoff.core.policy import Policy
from signoff.core.retry import Backoff
from signoff.core.target import Model
from signoff.courier import Courier
from signoff.couriers.http import HttpCourier
from signoff.dashboard import home
from signoff.doors import deliveries, generate, health, jobs, models, native, session
from signoff.doors.front import Front, make_rest
from signoff.doors.http import Knobs
from signoff.doors.openai import OpenAIDoor
from signoff.doors.predict import PREFIXES, PredictDoor
from signoff.engine import Engine
from signoff.engines.echo import EchoEngine
from signoff.engines.http import HttpEngine
from signoff.engines.llama import is_installed, local_command, local_weights
from signoff.engines.openai import OpenAIEngine
from signoff.engines.subprocess import SubprocessEngine
from signoff.engines.upstream import Upstream
from signoff.parts.background import Background
from signoff.parts.callers import Callers
from signoff.parts.inflight import InFlight
from signoff.parts.leases import Leases
from signoff.parts.logs import Logs
from signoff.parts.models import Models
from signoff.parts.refresh import Refresh
from signoff.parts.waits import Waits
from signoff.sender import Sender
from signoff.settings import Settings
from signoff.stores.archive import Manifest, check
from signoff.stores.sql import SqlStore
from signoff.vault import Vault, add_keys, keys_in
from signoff.work.desk import Desk, Rules
from signoff.work.models import locked_models
from signoff.work.record import file
from signoff.work.sweep import sweep_for_ever
from signoff.worker import Worker

FINISH_SECONDS = 5.0


class Restored(msgspec.Struct, frozen=True):
    """What came of a restore."""

    manifest: Manifest
    had_key: bool
    locked_models: list[str]


@contextlib.asynccontextmanager
async def running(settings: Settings, *, work: bool) -> AsyncGenerator[Desk]:
    """A desk that works, with a worker of its own if `work`; closed in order at the end.

    Raises SchemaOutdated when the schema of a database server is not this version's.
    """
    upstream = Upstream(now=time.time)
    async with opened(settings, upstream) as desk, _started(upstream):
        concurrency = settings.concurrency if work else 0
        async with alive(desk, concurrency=concurrency, drain_seconds=settings.drain_seconds):
            yield desk


@contextlib.asynccontextmanager
async def alive(desk: Desk, *, concurrency: int, drain_seconds: float) -> AsyncGenerator[None]:
    """All that goes on in a process by itself, while the block runs; it works and sends unless `concurrency` is 0."""
    worker = Worker(desk, concurrency=concurrency, drain_seconds=drain_seconds)
    senders = [Sender(desk, kind, drain_seconds=drain_seconds) for kind in desk.couriers]
    refresh = Refresh(desk.store, {"models": desk.models.forget, "people": desk.callers.forget})
    workers = [worker, *senders] if concurrency else []
    for part in (desk.waits, desk.leases, refresh, *workers):
        desk.store.listen(part.hear)
    chores = [
        desk.waits.cast_net(),
        desk.leases.keep(),
        refresh.cast_net(),
        sweep_for_ever(desk),
        desk.in_flight.file_the_slow(lambda flight: file(desk, flight), after_seconds=desk.rules.log_after_seconds),
    ]
    await desk.broker.start()
    async with _tasks(chores), _started(*desk.couriers.values(), *desk.engines.values()):
        try:
            async with _tasks([part.run() for part in workers]):
                yield
        finally:
            await desk.background.finish(FINISH_SECONDS)


@contextlib.asynccontextmanager
async def opened(settings: Settings, upstream: Upstream | None = None) -> AsyncGenerator[Desk]:
    """A desk with its store open, and nothing running: enough to look and to write."""
    desk = _desk(settings, upstream or Upstream(now=time.time))
    if settings.is_embedded:
        await desk.store.migrate()
    await desk.store.start()
    try:
        yield desk
    finally:
        await desk.broker.close()
        await desk.store.close()


async def migrate(settings: Settings) -> None:
    """Brings the database's schema up to date."""
    store = SqlStore(settings.store_url)
    try:
        await store.migrate()
    finally:
        await store.close()


async def backup(settings: Settings, path: Path, *, with_key: bool) -> Manifest:
    """Writes everything into a new file, as it is now; servers go on. Raises BadBackup, SchemaOutdated."""
    key = settings.key_path.read_bytes() if with_key else None
    store = SqlStore(settings.store_url)
    try:
        await store.start()
        return await store.backup(path, key=key)
    finally:
        await store.close()


async def restore(settings: Settings, path: Path) -> Restored:
    """Fills an empty database from a file that `backup` has made. Raises BadBackup."""
    contents = check(path)
    keys = (contents.key or b"").split()
    store = SqlStore(settings.store_url)
    try:
        await store.restore(path, contents.manifest, at_end=lambda: add_keys(settings.key_path, keys) if keys else None)
    finally:
        await store.close()
    async with opened(settings) as desk:
        return Restored(contents.manifest, bool(keys), await locked_models(desk))


async def look_for_broker(settings: Settings) -> str:
    """What is found of the broker, in words. Raises ConnectionError with what to do."""
    if settings.amqp_url is None:
        return "none: bells ring inside each process"
    return await line.found(settings.amqp_url, settings.queue_name)


async def look_for_redis(settings: Settings) -> str:
    """What is found of Redis, in words. Raises ConnectionError with what to do."""
    if settings.redis_url is None:
        return "none: results are in the database alone"
    from signoff.couriers import redis

    return await redis.found(settings.redis_url)


def make_front(desk: Desk, settings: Settings) -> Front:
    """The doors, in front of `desk`."""
    knobs = Knobs(
        max_body_bytes=settings.max_body_bytes,
        anonymous_role=settings.anonymous_role,
        enqueue_review=settings.enqueue_review,
        keep_alive_seconds=settings.keep_alive_seconds,
        on_loopback=settings.is_on_loopback,
        remote_commands=settings.allow_remote_commands,
    )
    openai = OpenAIDoor(desk, knobs)
    doors = [door.router for door in (jobs, generate, native, models, deliveries, health, session)]
    rest = make_rest([*doors, home.router, home.static], desk, knobs, home.TEMPLATES)
    predict = PredictDoor(desk, knobs)
    hot = {"/v1/": openai, "/openai/v1/": openai} | dict.fromkeys(PREFIXES, predict)
    return Front(hot, rest, desk=desk, knobs=knobs)


def models_that_always_exist(settings: Settings) -> list[Model]:
    """`inner` where an address is given, `local` where it is installed, and `echo`."""
    models = [Model(name="echo", kind="echo")]
    weights = local_weights()
    if weights is not None and is_installed():
        models.insert(0, Model(name="local", kind="subprocess", command=local_command(weights), serve=True))
    if settings.inner_llm_url:
        models.insert(0, Model(name="inner", kind="openai", url=settings.inner_llm_url, default=True))
    return models


def _desk(settings: Settings, upstream: Upstream) -> Desk:
    store = SqlStore(settings.store_url)
    rules = _rules(settings)
    logs = Logs(settings.data_dir / "logs", _clock)
    return Desk(
        store=store,
        broker=_broker(settings),
        engines={
            "echo": EchoEngine(),
            "http": HttpEngine(upstream),
            "openai": OpenAIEngine(upstream),
            "subprocess": SubprocessEngine(
                upstream,
                settings.data_dir / "run",
                clock=_clock,
                tell=lambda name, line: logs.add(name, "info", line),
            ),
        },
        couriers=_couriers(settings, rules.reach),
        models=Models(store.catalog, models_that_always_exist(settings)),
        callers=Callers(store.people),
        leases=Leases(store, lease_seconds=rules.lease_seconds, heartbeat_seconds=rules.heartbeat_seconds),
        waits=Waits(store),
        in_flight=InFlight(),
        logs=logs,
        background=Background(),
        vault=Vault(keys_in(settings.key_path)),
        rules=rules,
        actor=f"worker:{socket.gethostname()}:{os.getpid()}",
        clock=_clock,
        new_id=lambda: str(uuid_utils.uuid7()),
        new_secret=lambda: "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH)),
        dice=random.random,
    )


def _broker(settings: Settings) -> Broker:
    if settings.amqp_url is None:
        return LocalBroker()
    return RabbitBroker(settings.amqp_url, queue_name=settings.queue_name, dice=random.random)


def _couriers(settings: Settings, reach: Reach) -> dict[DeliveryKind, Courier]:
    couriers: dict[DeliveryKind, Courier] = {"webhook": HttpCourier(reach)}
    if settings.redis_url is not None:
        from signoff.couriers.redis import RedisCourier

        couriers["redis"] = RedisCourier(settings.redis_url, ttl_seconds=settings.redis_ttl_seconds, dice=random.random)
    return couriers


def _rules(settings: Settings) -> Rules:
    return Rules(
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        sweep_seconds=settings.sweep_seconds,
        now_attempts=settings.now_attempts,
        later_attempts=settings.later_attempts,
        backoff=Backoff(first_seconds=settings.backoff_seconds, ceiling_seconds=settings.backoff_ceiling_seconds),
        hold_seconds=settings.hold_seconds,
        keep_alive_seconds=settings.keep_alive_seconds,
        log_after_seconds=settings.log_after_seconds,
        log_before_answer=settings.log_before_answer,
        retention_days=settings.retention_days,
        policy=Policy(deadline_seconds=settings.review_deadline_seconds, undo_seconds=settings.undo_seconds),
        reach=Reach(settings.webhook_allow),
        webhook_waits_seconds=settings.webhook_waits_seconds,
        webhook_secrets=settings.webhook_secrets,
        redis_prefix=None if settings.redis_url is None else settings.redis_prefix,
    )


def _clock() -> int:
    return time.time_ns() // 1000


@contextlib.asynccontextmanager
async def _tasks(works: Sequence[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Runs `works` while the block runs, and ends them after it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@contextlib.asynccontextmanager
async def _started(*parts: Upstream | Courier | Engine) -> AsyncGenerator[None]:
    """Starts the parts in this order, and closes them in the other."""
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await part.start()
            stack.push_async_callback(part.close)
        yield
