"""Deliver: the end of a job is told to whoever asked to be told, until they have taken it or it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.allow_list import checked_host
from signoff.core.ask import Ask
from signoff.core.delivery import Delivery, DeliveryOutcome, DeliveryTarget, OutgoingMessage, WebhookTarget
from signoff.core.envelope import reply_for
from signoff.core.job import Job
from signoff.core.result import result_of
from signoff.core.retry import scheduled_seconds
from signoff.core.signing import Secret, secrets_in
from signoff.core.webhook import webhook_body, webhook_headers
from signoff.errors import BadRequest, SignoffError, Undelivered
from signoff.work.jobs.query import load_job
from signoff.work.services import Services

GONE = 410
log = structlog.get_logger()


def delivery_targets(services: Services, ask: Ask, name: str) -> tuple[DeliveryTarget, ...]:
    """Who is told of the end of a job that is called `name`; of one whose caller waits, whom the caller says.

    Raises AddressRefused, and BadRequest where there is no secret to sign with.
    """
    hooks = () if ask.webhook is None else (_webhook(services, ask.webhook),)
    if ask.reply_to is not None:
        hooks = (*hooks, DeliveryTarget(kind="topic", address=ask.reply_to, host=ask.reply_to))
    return hooks if ask.lane == "now" else (*hooks, *result_mirrors(services, name))


def result_mirrors(services: Services, name: str) -> tuple[DeliveryTarget, ...]:
    """Where the result of a job that is called `name` can be read beside the store."""
    prefix = services.rules.redis_prefix
    return () if prefix is None else (DeliveryTarget(kind="redis", address=f"{prefix}:{name}", host="redis"),)


def _webhook(services: Services, hook: WebhookTarget) -> DeliveryTarget:
    host = checked_host(hook.url, services.rules.allow_list)
    if hook.secret is None and not services.rules.webhook_secrets:
        raise BadRequest("deliver needs a secret (whsec_…): this server has none of its own (webhook_secret).")
    sealed = None if hook.secret is None else services.adapters.vault.seal(hook.secret.reveal())
    return DeliveryTarget(address=hook.url, host=host, sealed=sealed)


async def deliver(services: Services, delivery: Delivery) -> None:
    """One attempt of a leased delivery, and what comes of it. When cancelled, gives the attempt back."""
    try:
        outcome = await _outcome(services, delivery)
    except asyncio.CancelledError:
        await asyncio.shield(
            services.runtime.background.spawn(_settle(services, delivery, DeliveryOutcome(state="due", counts=False)))
        )
        raise
    await _settle(services, delivery, outcome)


async def _outcome(services: Services, delivery: Delivery) -> DeliveryOutcome:
    try:
        status = await _carry(services, delivery)
    except Exception as error:  # noqa: BLE001 -- whatever it was, another attempt may help
        return _failed(services, delivery, None, _told(error, delivery))
    if status is None or 200 <= status < 300:
        return DeliveryOutcome(state="done", status=status)
    if status == GONE:
        return DeliveryOutcome(state="failed", status=status, error="The receiver wants no more: it answered 410.")
    return _failed(services, delivery, status, f"The receiver answered with status {status}.")


async def _carry(services: Services, delivery: Delivery) -> int | None:
    deliverer = services.adapters.deliverers.get(delivery.kind)
    if deliverer is None:
        raise Undelivered(f"This server cannot deliver to {delivery.kind}.")
    return await deliverer.send(_message(services, delivery, await load_job(services, delivery.job_id)))


def _message(services: Services, delivery: Delivery, job: Job) -> OutgoingMessage:
    match delivery.kind:
        case "webhook":
            body = webhook_body(job)
            headers = webhook_headers(delivery.id, services.clock(), body, _secrets(services, job))
            return OutgoingMessage(address=delivery.address, headers=headers, body=body)
        case "redis":
            return OutgoingMessage(address=delivery.address, body=msgspec.json.encode(result_of(job)))
        case "topic":
            return OutgoingMessage(address=delivery.address, headers={"message-id": delivery.id}, body=reply_for(job))


def _secrets(services: Services, job: Job) -> Sequence[Secret]:
    sealed = next((to.sealed for to in job.deliver if to.kind == "webhook"), None)
    if sealed is not None:
        return secrets_in(services.adapters.vault.open(sealed))
    if not services.rules.webhook_secrets:
        raise Undelivered("This server has no secret to sign with any more (webhook_secret).")
    return services.rules.webhook_secrets


def _told(error: Exception, delivery: Delivery) -> str:
    if isinstance(error, SignoffError):
        return error.message
    log.error("a delivery failed unexpectedly", delivery=delivery.id, exc_info=error)
    return "The message could not be sent, because of a fault in this server; its log says more."


def _failed(services: Services, delivery: Delivery, status: int | None, error: str) -> DeliveryOutcome:
    wait = scheduled_seconds(services.rules.webhook_waits_seconds, delivery.attempt, services.ids.random_float())
    if wait is None:
        return DeliveryOutcome(
            state="failed", status=status, error=f"{error} Given up after {delivery.attempt} attempts."
        )
    return DeliveryOutcome(state="due", status=status, error=error, after_seconds=wait)


async def _settle(services: Services, delivery: Delivery, outcome: DeliveryOutcome) -> None:
    """Writes it down; where that fails the lease lapses, and the message goes out again under the same id."""
    assert delivery.lease is not None  # noqa: S101 -- a claimed delivery has one
    about = {"delivery": delivery.id, "job": delivery.job_id, "host": delivery.host}
    try:
        stood = await services.store.deliveries.settle(delivery.id, delivery.lease, outcome)
    except Exception as error:  # noqa: BLE001 -- the store is away
        log.warning("could not write down what became of a delivery", error=repr(error), **about)
        return
    if stood and outcome.state == "failed":
        log.error("a delivery was given up", error=outcome.error, **about)
