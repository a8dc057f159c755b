"""The composition root: the only file that names concrete classes."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncGenerator

import uuid_utils

from signoff.broker import Broker
from signoff.brokers import amqp
from signoff.brokers.local import LocalBroker
from signoff.brokers.rabbitmq import RabbitBroker
from signoff.cache import Bounds, Cache
from signoff.caches.memory import MemoryCache
from signoff.core.allow_list import Reach
from signoff.core.delivery import DeliveryKind
from signoff.core.keys import ALPHABET, SECRET_LENGTH
from signoff.core.model import Model, registered_name
from signoff.core.policy import Policy
from signoff.core.retry import Backoff
from signoff.dashboard import home
from signoff.deliverer import Courier
from signoff.deliverers.http import HttpCourier
from signoff.deliverers.topics import TopicCourier
from signoff.doors import (
    deliveries,
    generate,
    health,
    jobs,
    keys,
    limits,
    models,
    native,
    pipelines,
    prompts,
    session,
    usage,
)
from signoff.doors import (
    streams as topics,
)
from signoff.doors.cached import PREFIXES as CACHED
from signoff.doors.cached import CachedDoor
from signoff.doors.http import ASGIApp, Knobs
from signoff.doors.openai.door import OpenAIDoor
from signoff.doors.predict import PREFIXES, PredictDoor
from signoff.doors.router import Front, make_rest
from signoff.engine import Engine
from signoff.engines.anyllm import AnyLLMEngine
from signoff.engines.echo import EchoEngine
from signoff.engines.http import HttpEngine
from signoff.engines.llama import is_installed, local_command, local_weights
from signoff.engines.openai import OpenAIEngine
from signoff.engines.plugins import brought_engines, brought_kinds
from signoff.engines.subprocess import SubprocessEngine
from signoff.engines.upstream import Upstream
from signoff.infra.vault import Vault, keys_in, standing_keys
from signoff.runtime.background import Background
from signoff.runtime.callers import Callers
from signoff.runtime.compositions import Compositions
from signoff.runtime.functions import Functions
from signoff.runtime.inflight import InFlight
from signoff.runtime.keys import Keys
from signoff.runtime.leases import Leases
from signoff.runtime.limits import Limits
from signoff.runtime.logs import Logs
from signoff.runtime.models import Models
from signoff.runtime.pools import Pools
from signoff.runtime.prices import PriceList
from signoff.runtime.reservations import Rooms
from signoff.runtime.response_cache import Answers
from signoff.runtime.streams import Streams
from signoff.runtime.watcher import Waits
from signoff.server.supervisor import alive, started
from signoff.settings import BadSettings, Settings
from signoff.stores.sql import SqlStore
from signoff.transports.registry import Transports
from signoff.work.services import Desk, Rules

BUILT_IN = ("anyllm", "echo", "http", "openai", "subprocess")


@contextlib.asynccontextmanager
async def running(settings: Settings, *, work: bool) -> AsyncGenerator[Desk]:
    """A desk that works, with a worker of its own if `work`; closed in order at the end.

    Raises SchemaOutdated when the schema of a database server is not this version's.
    """
    upstream = Upstream(now=time.time)
    async with opened(settings, upstream) as desk, started(upstream):
        concurrency = settings.concurrency if work else 0
        async with alive(desk, concurrency=concurrency, drain_seconds=settings.drain_seconds):
            yield desk


@contextlib.asynccontextmanager
async def opened(settings: Settings, upstream: Upstream | None = None) -> AsyncGenerator[Desk]:
    """A desk with its store open, and nothing running: enough to look and to write."""
    desk = _desk(settings, upstream or Upstream(now=time.time))
    if settings.is_embedded:
        await desk.store.migrate()
    await desk.store.start()
    await desk.answers.start()
    try:
        yield desk
    finally:
        await desk.broker.close()
        await desk.answers.close()
        await desk.store.close()


async def migrate(settings: Settings) -> None:
    """Brings the database's schema up to date."""
    store = SqlStore(settings.store_url)
    try:
        await store.migrate()
    finally:
        await store.close()


async def look_for_broker(settings: Settings) -> str:
    """What is found of the broker, in words. Raises ConnectionError with what to do."""
    if settings.amqp_url is None:
        return "none: bells ring inside each process"
    return await amqp.found(settings.amqp_url, settings.queue_name)


async def look_for_redis(settings: Settings) -> str:
    """What is found of Redis, in words. Raises ConnectionError with what to do."""
    if settings.redis_url is None:
        return "none: results are in the database alone"
    from signoff.deliverers import redis

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
        cors_origins=frozenset(settings.cors_origins),
    )
    openai = OpenAIDoor(desk, knobs)
    predict = PredictDoor(desk, knobs)
    cached = CachedDoor(desk, knobs)
    hot = {"/v1/": openai, "/openai/v1/": openai} | dict.fromkeys(PREFIXES, predict) | dict.fromkeys(CACHED, cached)
    return Front(hot, _rest(), desk=desk, knobs=knobs)


@functools.cache
def _rest() -> ASGIApp:
    listed = (
        jobs,
        generate,
        native,
        models,
        keys,
        prompts,
        pipelines,
        deliveries,
        topics,
        limits,
        usage,
        health,
        session,
    )
    return make_rest([*(door.router for door in listed), home.router, home.static], home.TEMPLATES)


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
    rules, background, vault = _rules(settings), Background(), _vault(settings)
    logs, actor = Logs(store.model_logs, _clock), f"worker:{socket.gethostname()}:{os.getpid()}"
    streams = Streams(store.streams, settings.declared_streams(vault.seal))
    transport_to = Transports(vault.open, f"{actor}:{_new_id()}")
    return Desk(
        store=store,
        broker=_broker(settings),
        engines=_engines(settings, upstream, logs),
        couriers=_couriers(settings, rules.reach, TopicCourier(streams.find, transport_to, dice=random.random)),
        models=Models(store.catalog, models_that_always_exist(settings)),
        prices=PriceList(store.ledger),
        compositions=Compositions(store.compositions),
        functions=Functions(
            store.compositions,
            [settings.functions_dir or settings.data_dir / "functions"],
            seconds=settings.function_seconds,
            clock=_clock,
        ),
        pools=Pools(),
        keys=Keys(store.catalog, vault),
        callers=Callers(store.people),
        leases=Leases(store, lease_seconds=rules.lease_seconds, heartbeat_seconds=rules.heartbeat_seconds),
        limits=Limits(store.quotas),
        rooms=Rooms(store.quotas, lease_seconds=rules.lease_seconds, heartbeat_seconds=rules.heartbeat_seconds),
        waits=Waits(store),
        in_flight=InFlight(),
        logs=logs,
        answers=Answers(_cache(settings, store), background, ttl_seconds=settings.cache_ttl_seconds),
        background=background,
        streams=streams,
        transport_to=transport_to,
        vault=vault,
        rules=rules,
        actor=actor,
        clock=_clock,
        new_id=_new_id,
        new_secret=lambda: "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH)),
        dice=random.random,
    )


def _engines(settings: Settings, upstream: Upstream, logs: Logs) -> dict[str, Engine]:
    return {
        **brought_engines(BUILT_IN),
        "anyllm": AnyLLMEngine(),
        "echo": EchoEngine(),
        "http": HttpEngine(upstream),
        "openai": OpenAIEngine(upstream),
        "subprocess": SubprocessEngine(
            upstream,
            settings.data_dir / "run",
            tell=lambda name, amqp: logs.add(registered_name(name), "info", amqp),
        ),
    }


def _cache(settings: Settings, store: SqlStore) -> Cache | None:
    bounds = Bounds(
        ttl_seconds=settings.cache_ttl_seconds,
        max_entries=settings.cache_max_entries,
        max_bytes=settings.cache_max_bytes,
    )
    match settings.cache:
        case "sql":
            return store.cache(bounds)
        case "memory":
            return MemoryCache(bounds, now=time.monotonic)
        case "redis":
            if settings.redis_url is None:
                raise BadSettings("cache: redis needs redis_url.")
            from signoff.caches.redis import RedisCache

            return RedisCache(settings.redis_url, prefix=settings.redis_prefix, bounds=bounds)
        case "none":
            return None


def kinds() -> list[str]:
    """The kinds of models that there are: ours, and those that installed packages bring."""
    return sorted({*BUILT_IN, *brought_kinds()})


def _vault(settings: Settings) -> Vault:
    path = settings.key_path
    return Vault(keys_in(path), look_again=lambda: standing_keys(path))


def _broker(settings: Settings) -> Broker:
    if settings.amqp_url is None:
        return LocalBroker()
    return RabbitBroker(settings.amqp_url, queue_name=settings.queue_name, dice=random.random)


def _couriers(settings: Settings, reach: Reach, topics: Courier) -> dict[DeliveryKind, Courier]:
    couriers: dict[DeliveryKind, Courier] = {"webhook": HttpCourier(reach), "topic": topics}
    if settings.redis_url is not None:
        from signoff.deliverers.redis import RedisCourier

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
        coalesce=settings.coalesce,
        policy=Policy(deadline_seconds=settings.review_deadline_seconds, undo_seconds=settings.undo_seconds),
        reach=Reach(settings.webhook_allow),
        webhook_waits_seconds=settings.webhook_waits_seconds,
        webhook_secrets=settings.webhook_secrets,
        redis_prefix=None if settings.redis_url is None else settings.redis_prefix,
        cache_shared=settings.cache_shared,
        model_share=settings.model_share,
        max_body_bytes=settings.max_body_bytes,
    )


def _clock() -> int:
    return time.time_ns() // 1000


def _new_id() -> str:
    return str(uuid_utils.uuid7())
