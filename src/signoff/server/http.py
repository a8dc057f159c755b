"""The HTTP side of a process: all doors and pages behind one router."""

import functools

from signoff.dashboard.error_page import error_page
from signoff.dashboard.routes import ROUTES
from signoff.dashboard.shell import TEMPLATES
from signoff.doors import (
    audit,
    budgets,
    deliveries,
    generate,
    health,
    jobs,
    keys,
    limits,
    metrics,
    models,
    native,
    people,
    pipelines,
    policies,
    prompts,
    receipts,
    review_queues,
    review_reports,
    reviews,
    session,
    streams,
    usage,
)
from signoff.doors.cached import PREFIXES as CACHED
from signoff.doors.cached import CachedDoor
from signoff.doors.errors import PROBLEM, detail, problem
from signoff.doors.http import ASGIApp, DoorSettings
from signoff.doors.openai.door import COHERE_RERANK, OpenAIDoor
from signoff.doors.predict import PREFIXES, PredictDoor
from signoff.doors.queue import QueueDoor
from signoff.doors.router import DoorRouter, make_litestar_app
from signoff.settings import Settings
from signoff.work.services import Services


def make_router(services: Services, settings: Settings) -> DoorRouter:
    """Return the router with all doors."""
    door_settings = DoorSettings(
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
        public_url=None if settings.public_url is None else settings.public_url.rstrip("/"),
        anonymous_role=settings.anonymous_role,
        enqueue_review=settings.enqueue_review,
        keep_alive_seconds=settings.keep_alive_seconds,
        allowed_hosts=frozenset(name.lower() for name in settings.allowed_hosts),
        on_loopback=settings.is_on_loopback,
        remote_commands=settings.allow_remote_commands,
        cors_origins=frozenset(settings.cors_origins),
        queues={settings.queue_name: None} | settings.queues,
        access_log=settings.access_log,
        metrics_token=None if settings.metrics_token is None else settings.metrics_token.get_secret_value(),
    )
    openai = OpenAIDoor(services, door_settings)
    predict = PredictDoor(services, door_settings)
    cached = CachedDoor(services, door_settings)
    hot: dict[str, ASGIApp] = {"/v1/": openai, "/openai/": openai, COHERE_RERANK: openai}
    hot |= dict.fromkeys(PREFIXES, predict) | dict.fromkeys(CACHED, cached)
    queue = _queue_doors(services, door_settings)
    return DoorRouter(hot, _litestar_app(), queue=queue, services=services, door_settings=door_settings)


def _queue_doors(services: Services, door_settings: DoorSettings) -> dict[str, QueueDoor]:
    """Return the doors of the routes that queue jobs, by path."""
    door = functools.partial(QueueDoor, services, door_settings)
    return {
        "/enqueue": door(accept=jobs.accept_payload, error_payload=jobs.error_payload),
        "/generate": door(accept=generate.accept_text, error_payload=detail),
        "/chat_completion": door(accept=generate.accept_chat, error_payload=detail),
        "/api/jobs": door(accept=native.accept_job, error_payload=problem, error_type=PROBLEM.encode()),
    }


@functools.cache
def _litestar_app() -> ASGIApp:
    rest = (
        jobs,
        generate,
        native,
        models,
        keys,
        people,
        prompts,
        pipelines,
        deliveries,
        streams,
        limits,
        policies,
        usage,
        audit,
        receipts,
        review_reports,
        reviews,
        review_queues,
        budgets,
        health,
        metrics,
        session,
    )
    return make_litestar_app([*(door.router for door in rest), *ROUTES], TEMPLATES, error_page)
