"""Composition root: the services of a process, made of what the settings name."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import structlog
import uuid_utils

from signoff.core.allow_list import AllowList
from signoff.core.api_tokens import ALPHABET, SECRET_LENGTH
from signoff.core.model import PERSON, Model
from signoff.core.retry import Backoff
from signoff.core.reviews.policy import JobPolicy
from signoff.engines.llama import is_installed, local_command, local_weights
from signoff.engines.plugins import plugin_kinds
from signoff.errors import Overloaded, ProviderFailed, WrongKey
from signoff.infra.logging import log_to_stderr
from signoff.infra.proxies import Proxies
from signoff.infra.tracing import Tracer
from signoff.infra.vault import Vault, load_keys, load_or_create_keys
from signoff.runtime.background import Background
from signoff.runtime.backlogs import Backlogs
from signoff.runtime.caller_leases import CallerLeases
from signoff.runtime.callers import CallerCache
from signoff.runtime.file_sizes import FileSizes
from signoff.runtime.functions import FunctionRegistry
from signoff.runtime.inflight import InflightCalls
from signoff.runtime.keys import UpstreamKeyCache
from signoff.runtime.leases import Leases
from signoff.runtime.library import LibraryCache
from signoff.runtime.limits import LimitCache
from signoff.runtime.logs import ModelLogWriter
from signoff.runtime.metrics import Metrics
from signoff.runtime.missing_paths import MissingPaths
from signoff.runtime.models import ModelCache
from signoff.runtime.open_calls import OpenCalls
from signoff.runtime.passes import Passes
from signoff.runtime.passwords import PasswordHasher
from signoff.runtime.policies import PolicyCache
from signoff.runtime.pools import EndpointPools
from signoff.runtime.prices import PriceCache
from signoff.runtime.reservations import Reservations
from signoff.runtime.response_cache import ResponseCache
from signoff.runtime.review_queues import ReviewQueueCache
from signoff.runtime.run_sizes import RunSizes
from signoff.runtime.scrape import ScrapeCache
from signoff.runtime.shutdown import Shutdown
from signoff.runtime.streams import StreamCache
from signoff.runtime.watcher import JobWatcher
from signoff.server.adapters import (
    BUILT_IN_KINDS,
    make_blobs,
    make_broker,
    make_cache,
    make_deliverers,
    make_engines,
    make_identity_provider,
    make_mailer,
    make_topics,
    make_tracer,
    make_webhooks,
)
from signoff.setting_sources import BadSettings
from signoff.settings import Settings
from signoff.stores.sql import SqlStore
from signoff.transports.registry import TransportRegistry
from signoff.work.admin.rotation import check_key
from signoff.work.services import Adapters, Caches, Ids, Rules, Runtime, Services
from signoff.work.tracing import trace_verdicts

if TYPE_CHECKING:
    from signoff.engines.upstream import UpstreamClient

RECONNECT_SECONDS = 0.5
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def run_services(settings: Settings, *, work: bool) -> AsyncGenerator[Services]:
    """Open the services and run their background services, including a worker if `work`; close all in order.

    Wait for a database server that cannot be reached, so that the order in which programs start does not matter.
    Raises SchemaOutdated if the schema of a database server has another version.
    """
    from signoff.engines.upstream import UpstreamClient
    from signoff.server.metrics_port import serve_metrics
    from signoff.server.supervisor import started, supervise

    upstream = UpstreamClient(now=time.time, proxies=Proxies.from_environment())
    async with open_services(settings, upstream, waits=True) as services, started(upstream):
        concurrency = settings.concurrency if work else 0
        async with (
            supervise(services, concurrency=concurrency, drain_seconds=settings.drain_seconds),
            serve_metrics(services, settings),
        ):
            yield services


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, upstream: UpstreamClient | None = None, *, checks_key: bool = True, waits: bool = False
) -> AsyncGenerator[Services]:
    """Open the services without background services, which is enough to read and write.

    If the database server cannot be reached, wait for it if `waits`, else raise CannotConnect.
    Raises WrongKey if `checks_key` and this host has another key than the one that encrypts the stored secrets.
    """
    log_to_stderr(settings.log_level, settings.log_format)
    check_data_dir(settings)
    had_key_file = settings.key_path.exists()
    services = _make_services(settings, upstream)
    if settings.is_embedded:
        await services.store.migrate()
    await _retry_until_reachable(services.store.start, wait_seconds=math.inf if waits else 0)
    await services.caches.responses.start()
    try:
        if checks_key:
            await _check_key(services, settings, had_key_file=had_key_file)
        yield services
    finally:
        await services.adapters.broker.close()
        await services.caches.responses.close()
        await services.store.close()
        services.runtime.passwords.close()
        if services.runtime.tracer is not None:
            await asyncio.to_thread(services.runtime.tracer.close)


def check_data_dir(settings: Settings) -> None:
    """Create the data folder if it does not exist. Raises BadSettings with a remedy if it cannot be written to."""
    path = settings.data_dir.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadSettings(f"The data folder {path} cannot be made: {reason}. Set SIGNOFF_DATA_DIR.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadSettings(f"The data folder {path} is not writable. Change its owner, or set SIGNOFF_DATA_DIR.")


async def _check_key(services: Services, settings: Settings, *, had_key_file: bool) -> None:
    try:
        await check_key(services, key_source(settings))
    except WrongKey:
        if not had_key_file and settings.secret_key is None:  # this start has made a key that is of no use
            settings.key_path.unlink(missing_ok=True)
        raise


async def migrate(settings: Settings, *, wait_seconds: float = 0) -> None:
    """Migrate the database's schema to this version; wait up to `wait_seconds` for a server that cannot be reached."""
    store = SqlStore(settings.store_url)
    try:
        await _retry_until_reachable(store.migrate, wait_seconds=wait_seconds)
    finally:
        await store.close()


async def _retry_until_reachable(operation: Callable[[], Awaitable[None]], *, wait_seconds: float) -> None:
    """Call `operation`, again and again for up to `wait_seconds` while the database server cannot be reached."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_seconds
    while True:
        try:
            return await operation()
        except (ConnectionError, Overloaded) as error:
            if clock() >= deadline or getattr(error, "is_permanent", False):
                raise
            log.warning("database_unreachable", error=str(error), effect="waiting until it can be reached")
        await asyncio.sleep(RECONNECT_SECONDS)


async def check_broker(settings: Settings) -> str:
    """Return a sentence on the state of the broker. Raises ConnectionError with a remedy."""
    if settings.amqp_url is None:
        return "none: the database wakes workers"
    from signoff.brokers import amqp

    return await amqp.describe_broker(settings.amqp_url, settings.queue_name)


async def check_redis(settings: Settings) -> str:
    """Return a sentence on the state of Redis. Raises ConnectionError with a remedy."""
    if settings.redis_url is None:
        return "none: results are stored in the database only"
    from signoff.deliverers import redis

    return await redis.describe_redis(settings.redis_url)


async def check_provider(settings: Settings) -> str:
    """Return a sentence on the state of the OpenID Connect provider. Raises BadSettings, and ConnectionError."""
    provider = make_identity_provider(settings)
    if provider is None:
        return "none: people sign in by password or link"
    try:
        return await provider.describe()
    except ProviderFailed as error:
        fault = (
            f"{error.reason}. Check `oidc_issuer`, and that this machine reaches it." if error.reason else error.message
        )
        raise ConnectionError(f"{settings.oidc_issuer}: {fault}") from None


async def check_files(settings: Settings) -> str:
    """Return a sentence on the store of the contents of files. Raises BadSettings, Overloaded."""
    return await make_blobs(settings).check()


def builtin_models(settings: Settings) -> list[Model]:
    """Return the built-in models: `inner` if its URL is set, `local` if it is installed, and `echo`."""
    models = [Model(name="echo", kind="echo")]
    weights = local_weights(settings.weights_dir)
    if weights is not None and is_installed():
        models.insert(0, Model(name="local", kind="subprocess", command=local_command(weights), serve=True))
    if settings.inner_llm_url:
        models.insert(0, Model(name="inner", kind="openai", url=settings.inner_llm_url, default=True))
    return models


def _make_services(settings: Settings, upstream: UpstreamClient | None) -> Services:
    rules, background, vault = _rules(settings), Background(), _vault(settings)
    store = SqlStore(settings.store_url, vault)
    renewal = {"lease_seconds": rules.lease_seconds, "heartbeat_seconds": rules.heartbeat_seconds}
    logs, actor = ModelLogWriter(store.model_logs, _clock), f"worker:{socket.gethostname()}:{os.getpid()}"
    caches = _caches(settings, store, vault, background)
    metrics = Metrics(caches.models.registered_name)
    transport_to = TransportRegistry(vault.open, f"{actor}:{_new_id()}")
    webhooks = cache(partial(make_webhooks, rules.allow_list))
    topics = partial(make_topics, caches, transport_to)
    return Services(
        store=store,
        adapters=Adapters(
            broker=make_broker(settings),
            blobs=make_blobs(settings),
            engines=make_engines(settings, upstream, logs),
            deliverers=make_deliverers(settings, webhooks, topics),
            mailer=make_mailer(settings),
            guardrail=webhooks,
            transport_to=transport_to,
            vault=vault,
            proxies=Proxies.from_environment(),
        ),
        caches=caches,
        runtime=Runtime(
            pools=EndpointPools(),
            leases=Leases(store, **renewal),
            reservations=Reservations(store.limits, **renewal),
            passes=Passes(store.budgets, _new_id),
            backlogs=Backlogs(store.jobs, max_jobs=settings.max_waiting_jobs, max_bytes=settings.max_waiting_bytes),
            run_sizes=RunSizes(settings.max_run_bytes),
            file_sizes=FileSizes(settings.max_stored_bytes),
            watcher=JobWatcher(store),
            caller_leases=CallerLeases(store.departures, background, **renewal),
            missing_paths=MissingPaths(),
            open_calls=OpenCalls(lambda caller: caches.callers.refresh(caller, _clock())),
            inflight_calls=InflightCalls(),
            metrics=metrics,
            tracer=_observe(store, metrics, settings),
            scrape=ScrapeCache(),
            logs=logs,
            passwords=PasswordHasher(),
            identity_provider=make_identity_provider(settings),
            shutdown=Shutdown(settings.unready_seconds),
            background=background,
        ),
        ids=_ids(actor),
        clock=_clock,
        rules=rules,
    )


def _observe(store: SqlStore, metrics: Metrics, settings: Settings) -> Tracer | None:
    """Report transitions to the metrics and to the tracer; return the tracer."""
    store.jobs.observe(metrics.transitions_made)
    tracer = make_tracer(settings)
    if tracer is not None:
        store.jobs.observe(partial(trace_verdicts, tracer))
    return tracer


def _ids(actor: str) -> Ids:
    return Ids(
        new_id=_new_id,
        new_secret=lambda: "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH)),
        random_float=random.random,
        actor=actor,
    )


def _caches(settings: Settings, store: SqlStore, vault: Vault, background: Background) -> Caches:
    return Caches(
        models=ModelCache(store.catalog, builtin_models(settings)),
        prices=PriceCache(store.usage),
        library=LibraryCache(store.library),
        functions=FunctionRegistry(
            store.library,
            [settings.functions_dir or settings.data_dir / "functions"],
            seconds=settings.function_seconds,
            clock=_clock,
        ),
        keys=UpstreamKeyCache(store.catalog, vault),
        callers=CallerCache(store.people),
        reviewers=ReviewQueueCache(store.people, store.review_queues),
        streams=StreamCache(store.streams, settings.declared_streams(vault.seal)),
        limits=LimitCache(store.limits),
        policies=PolicyCache(store.policies),
        responses=ResponseCache(make_cache(settings, store), background, ttl_seconds=settings.cache_ttl_seconds),
    )


def model_kinds() -> list[str]:
    """Return the kinds of models: the built-in ones, people, and those of installed packages."""
    return sorted({*BUILT_IN_KINDS, PERSON, *plugin_kinds()})


def key_source(settings: Settings) -> str:
    """Return the place of the encryption keys, for messages: the setting `secret_key`, or the path of a file."""
    return str(settings.key_path) if settings.secret_key is None else "the setting `secret_key`"


def _vault(settings: Settings) -> Vault:
    path = settings.key_path
    if settings.secret_key is not None:
        return Vault(settings.secret_key.get_secret_value().encode().split())
    return Vault(load_or_create_keys(path), reload_keys=lambda: load_keys(path))


def _rules(settings: Settings) -> Rules:
    return Rules(
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        sweep_seconds=settings.sweep_seconds,
        now_attempts=settings.now_attempts,
        later_attempts=settings.later_attempts,
        backoff=Backoff(first_seconds=settings.backoff_seconds, ceiling_seconds=settings.backoff_ceiling_seconds),
        hold_seconds=settings.hold_seconds,
        stream_hold_seconds=settings.stream_hold_seconds,
        keep_alive_seconds=settings.keep_alive_seconds,
        log_after_seconds=settings.log_after_seconds,
        log_before_answer=settings.log_before_answer,
        retention_seconds=None if settings.retention_days is None else settings.retention_days * 24 * 3600,
        coalesce=settings.coalesce,
        policy=JobPolicy(
            deadline_seconds=settings.review_deadline_seconds, undo_seconds=settings.release_after_seconds or 0
        ),
        release_after_seconds=5 if settings.release_after_seconds is None else settings.release_after_seconds,
        allow_self_review=settings.allow_self_review,
        public_url=None if settings.public_url is None else settings.public_url.rstrip("/"),
        allow_list=AllowList(settings.webhook_allow),
        webhook_waits_seconds=settings.webhook_waits_seconds,
        webhook_secrets=settings.webhook_secrets,
        redis_prefix=None if settings.redis_url is None else settings.redis_prefix,
        cache_shared=settings.cache_shared,
        pass_headers=tuple(settings.pass_headers),
        model_share=settings.model_share,
        user_share=settings.user_share,
        password_sign_in=settings.password_sign_in,
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
    )


def _clock() -> int:
    return time.time_ns() // 1000


def _new_id() -> str:
    return str(uuid_utils.uuid7())
