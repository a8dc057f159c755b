"""Adapters that the settings name. Each is imported when it is made: imports are most of the time of a start."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from signoff.blob import Blobs
from signoff.broker import Broker
from signoff.brokers.local import LocalBroker
from signoff.cache import Cache, CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.core.allow_list import AllowList
from signoff.core.decode import TEXT_ENCODING
from signoff.core.delivery import DeliveryKind
from signoff.core.model import PERSON, registered_name
from signoff.core.oidc import ProviderSettings
from signoff.deliverer import Deliverer, Mailer
from signoff.engine import Engine
from signoff.engines.plugins import load_plugins
from signoff.infra.adapter_registry import AdapterRegistry
from signoff.infra.json_client import JsonClient
from signoff.infra.program import install_hint
from signoff.infra.proxies import Proxies
from signoff.infra.tracing import Tracer
from signoff.runtime.identity_provider import IdentityProvider
from signoff.runtime.logs import ModelLogWriter
from signoff.setting_sources import BadSettings
from signoff.settings import Settings
from signoff.stores.sql import SqlStore
from signoff.transports.registry import TransportRegistry
from signoff.work.services import Caches

if TYPE_CHECKING:
    from signoff.deliverers.http import HttpDeliverer
    from signoff.engines.upstream import UpstreamClient

BUILT_IN_KINDS = ("anyllm", "echo", "http", "openai", "subprocess")


def make_engines(settings: Settings, upstream: UpstreamClient | None, logs: ModelLogWriter) -> Mapping[str, Engine]:
    """Return the engines by the kind of model. They share `upstream`, or a client that is not started."""
    plugins = load_plugins((*BUILT_IN_KINDS, PERSON))

    def make(kind: str) -> Engine:
        match kind:
            case "anyllm":
                from signoff.engines.anyllm import AnyLLMEngine

                return AnyLLMEngine()
            case "echo":
                from signoff.engines.echo import EchoEngine

                return EchoEngine(faults=settings.echo_faults)
            case "http":
                from signoff.engines.http import HttpEngine

                return HttpEngine(client())
            case "openai":
                from signoff.engines.openai import OpenAIEngine

                return OpenAIEngine(client())
            case "subprocess":
                from signoff.engines.subprocess import SubprocessEngine

                return SubprocessEngine(client(), settings.data_dir / "run", on_log_line=add_log_line)
            case _:
                return plugins[kind]

    @cache
    def client() -> UpstreamClient:
        from signoff.engines.upstream import UpstreamClient

        return upstream or UpstreamClient(now=time.time)

    def add_log_line(name: str, line: str) -> None:
        logs.add(registered_name(name), "info", line)

    return AdapterRegistry((*BUILT_IN_KINDS, *plugins), make)


def make_cache(settings: Settings, store: SqlStore) -> Cache | None:
    """Return the storage of cached answers; None for no cache."""
    bounds = CacheBounds(
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
                raise BadSettings('`cache = "redis"` requires `redis_url`.')
            from signoff.caches.redis import RedisCache

            return RedisCache(settings.redis_url, prefix=settings.redis_prefix, bounds=bounds)
        case "none":
            return None


def make_broker(settings: Settings) -> Broker:
    """Return the broker, not connected."""
    if settings.amqp_url is None:
        return LocalBroker()
    from signoff.brokers.rabbitmq import RabbitBroker

    return RabbitBroker(settings.amqp_url, queue_name=settings.queue_name, random_float=random.random)


def make_blobs(settings: Settings) -> Blobs:
    """Return the store of the contents of files. Raises BadSettings."""
    from signoff.blobs.object_store import open_blobs

    try:
        return open_blobs(settings.blob_url, settings.data_dir / "blobs")
    except ValueError as error:
        raise BadSettings(str(error)) from None


def make_deliverers(
    settings: Settings, webhooks: Callable[[], Deliverer], topics: Callable[[], Deliverer]
) -> Mapping[DeliveryKind, Deliverer]:
    """Return the delivery adapters by kind."""
    factories = {"webhook": webhooks, "topic": topics}
    if settings.redis_url is not None:
        factories["redis"] = partial(_redis, settings.redis_url, settings.redis_ttl_seconds)
    kinds: list[DeliveryKind] = [kind for kind in ("webhook", "topic", "redis") if kind in factories]
    return AdapterRegistry(kinds, lambda kind: factories[kind]())


def make_webhooks(allow_list: AllowList) -> HttpDeliverer:
    """Return the client that sends webhooks, and that asks the webhooks of policies about answers."""
    from signoff.deliverers.http import HttpDeliverer

    return HttpDeliverer(allow_list, proxies=Proxies.from_environment())


def make_topics(caches: Caches, transport_to: TransportRegistry) -> Deliverer:
    """Return the publisher of answers to streams."""
    from signoff.deliverers.topics import TopicDeliverer

    return TopicDeliverer(caches.streams.find, transport_to, random_float=random.random)


def _redis(url: str, ttl_seconds: int) -> Deliverer:
    from signoff.deliverers.redis import RedisDeliverer

    return RedisDeliverer(url, ttl_seconds=ttl_seconds, random_float=random.random)


def make_tracer(settings: Settings) -> Tracer | None:
    """Return the tracer; None without a collector. Raises BadSettings if the extra `otel` is not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from signoff.infra.otel import OtelTracer
    except ImportError:
        raise BadSettings(f"`otlp_endpoint` needs OpenTelemetry; {install_hint('otel')}.") from None
    return OtelTracer(settings.otlp_endpoint)


def make_mailer(settings: Settings) -> Mailer | None:
    """Return the mail server; None without one."""
    if settings.smtp_url is None:
        return None
    from signoff.deliverers.smtp import SmtpMailer

    return SmtpMailer(settings.smtp_url.get_secret_value(), from_address=settings.smtp_from)


def make_identity_provider(settings: Settings) -> IdentityProvider | None:
    """Return the client of the OpenID Connect provider; None without one. Raises BadSettings."""
    if settings.oidc_issuer is None:
        if settings.oidc_client_id is not None:
            raise BadSettings("`oidc_client_id` requires `oidc_issuer`.")
        return None
    provider_settings = _provider_settings(settings, settings.oidc_issuer)
    if settings.oidc_client_secret is not None and settings.oidc_client_secret_file is not None:
        raise BadSettings("`oidc_client_secret` and `oidc_client_secret_file` exclude each other; set one of them.")
    return IdentityProvider(
        provider_settings,
        JsonClient(Proxies.from_environment()),
        read_secret=partial(_client_secret, settings),
        now=time.monotonic,
    )


def _provider_settings(settings: Settings, issuer: str) -> ProviderSettings:
    if settings.oidc_client_id is None:
        raise BadSettings("`oidc_issuer` requires `oidc_client_id`.")
    if "openid" not in settings.oidc_scopes:
        raise BadSettings('`oidc_scopes` must have "openid"; add it.')
    if (settings.oidc_role_claim is None) != (not settings.oidc_roles):
        raise BadSettings("`oidc_role_claim` and `oidc_roles` require each other.")
    if settings.oidc_email_claim != "email" and not settings.oidc_trust_email:
        raise BadSettings("`oidc_email_claim` requires `oidc_trust_email`: `email_verified` is about `email` alone.")
    return ProviderSettings(
        issuer=issuer,
        client_id=settings.oidc_client_id,
        scopes=settings.oidc_scopes,
        name=settings.oidc_name,
        email_claim=settings.oidc_email_claim,
        trust_email=settings.oidc_trust_email,
        role_claim=settings.oidc_role_claim,
        roles=settings.oidc_roles,
        default_role=settings.oidc_default_role,
        create_users=settings.oidc_create_users,
        link_users=settings.oidc_link_users,
    )


def _client_secret(settings: Settings) -> str | None:
    """Return the secret in the settings or in their file; None for a public client. Raises BadSettings.

    The file is read at each sign-in, so it can be replaced, and commands work under accounts that cannot read it.
    """
    secret, path = settings.oidc_client_secret, settings.oidc_client_secret_file
    if path is None:
        return None if secret is None else secret.get_secret_value()
    try:
        text = path.read_text(TEXT_ENCODING).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadSettings(f"`oidc_client_secret_file`: {path} cannot be read: {reason}.") from None
    if not text:
        raise BadSettings(f"`oidc_client_secret_file`: {path} is empty.")
    return text
