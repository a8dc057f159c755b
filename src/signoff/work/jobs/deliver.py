"""Deliveries: send the end of a job to webhooks, Redis and response topics, until it is received or given up."""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.allow_list import checked_host
from signoff.core.ask import Ask
from signoff.core.batch import is_batch_id
from signoff.core.delivery import (
    Delivery,
    DeliveryOutcome,
    DeliveryTarget,
    OutgoingMessage,
    SealedWebhook,
    WebhookTarget,
)
from signoff.core.envelope import answer_message
from signoff.core.job import Job
from signoff.core.result import result_of
from signoff.core.retry import scheduled_seconds
from signoff.core.signing import Secret, secrets_in
from signoff.core.webhook import batch_webhook_body, webhook_body, webhook_headers
from signoff.errors import BadRequest, SignoffError, Undelivered
from signoff.work.jobs.query import load_job
from signoff.work.services import Services
from signoff.work.tracing import trace_headers, traced_delivery

GONE = 410
log = structlog.get_logger()


def delivery_targets(services: Services, ask: Ask, job_id: str) -> tuple[DeliveryTarget, ...]:
    """Return the targets to which the end of a job is sent: those that the request names, and Redis for a queued job.

    The result in Redis has the id that the caller chose, else `job_id`; that of a message of a stream has always
    `job_id`, as a message is not refused if a caller has its id. Raises AddressRefused, and BadRequest without a secret
    to sign with.
    """
    targets = () if ask.webhook is None else (_webhook_target(services, ask.webhook),)
    if ask.reply_to is not None:
        target = DeliveryTarget(kind="topic", address=ask.reply_to, host=ask.reply_to, reply=ask.reply)
        targets = (*targets, target)
    name = job_id if ask.client_id is None or ask.reply_to is not None else ask.client_id
    return targets if ask.lane == "now" else (*targets, *result_mirrors(services, name))


def result_mirrors(services: Services, name: str) -> tuple[DeliveryTarget, ...]:
    """Return the target of the result in Redis, at the key `redis_prefix:name`; none without Redis."""
    prefix = services.rules.redis_prefix
    return () if prefix is None else (DeliveryTarget(kind="redis", address=f"{prefix}:{name}", host="redis"),)


def _webhook_target(services: Services, webhook: WebhookTarget) -> DeliveryTarget:
    host = checked_host(webhook.url, services.rules.allow_list)
    return DeliveryTarget(address=host, host=host, sealed=seal_webhook(services, webhook))


def seal_webhook(services: Services, webhook: WebhookTarget) -> bytes:
    """Return the encrypted URL and secret of a webhook. Raises BadRequest without a secret to sign with."""
    if webhook.secret is None and not services.rules.webhook_secrets:
        raise BadRequest(
            "`deliver` needs a `secret` (whsec_…), as the setting `webhook_secret` is empty; set one of them."
        )
    secret = None if webhook.secret is None else webhook.secret.reveal()
    return services.adapters.vault.seal(msgspec.json.encode(SealedWebhook(url=webhook.url, secret=secret)).decode())


async def deliver(services: Services, delivery: Delivery) -> None:
    """Make one attempt at a leased delivery, and store its outcome.

    When cancelled, release the delivery with its attempt.
    """
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
        status = await _send(services, delivery)
    except Exception as error:  # noqa: BLE001 -- another attempt may succeed
        return _failed_outcome(services, delivery, None, _error_text(error, delivery))
    if status is None or 200 <= status < 300:
        return DeliveryOutcome(state="done", status=status)
    if status == GONE:
        return DeliveryOutcome(state="failed", status=status, error="The receiver answered with status 410 (Gone).")
    return _failed_outcome(services, delivery, status, f"The receiver answered with status {status}.")


async def _send(services: Services, delivery: Delivery) -> int | None:
    deliverer = services.adapters.deliverers.get(delivery.kind)
    if deliverer is None:
        raise Undelivered(f"This server cannot deliver to {delivery.kind}.")
    if is_batch_id(delivery.job_id):
        return await deliverer.send(await _batch_message(services, delivery))
    job = await load_job(services, delivery.job_id)
    if delivery.kind == "redis" and not await _is_newest(services, job):
        return None
    with traced_delivery(services, delivery, job) as span:
        status = await deliverer.send(_message(services, delivery, job))
        if span is not None and status is not None:
            span.set({"http.response.status_code": status})
        return status


async def _is_newest(services: Services, job: Job) -> bool:
    """Return True unless the user has a newer job with the same client id, whose result takes its place in Redis."""
    if job.client_id is None:
        return True
    newest = await services.store.jobs.by_client_id(job.user_id, job.client_id)
    return newest is None or newest.id == job.id


def _message(services: Services, delivery: Delivery, job: Job) -> OutgoingMessage:
    match delivery.kind:
        case "webhook":
            sealed = next((target.sealed for target in job.deliver if target.kind == "webhook"), None)
            url, secrets = _webhook_of(services, delivery, sealed)
            body = webhook_body(job)
            headers = webhook_headers(delivery.id, services.clock(), body, secrets) | trace_headers(services)
            return OutgoingMessage(address=url, headers=headers, body=body)
        case "redis":
            return OutgoingMessage(address=delivery.address, body=msgspec.json.encode(result_of(job)))
        case "topic":
            [reply] = [target.reply for target in job.deliver if target.kind == "topic"]
            headers = {"message-id": delivery.id} | reply.headers | trace_headers(services)
            return OutgoingMessage(address=delivery.address, headers=headers, body=answer_message(job))


async def _batch_message(services: Services, delivery: Delivery) -> OutgoingMessage:
    """Return the message about the end of a batch. Raises Undelivered, Unreadable."""
    batch = await services.store.batches.get(delivery.job_id)
    if batch is None:
        raise Undelivered("The batch was deleted.")
    url, secrets = _webhook_of(services, delivery, batch.webhook)
    body = batch_webhook_body(batch)
    return OutgoingMessage(
        address=url, headers=webhook_headers(delivery.id, services.clock(), body, secrets), body=body
    )


def _webhook_of(services: Services, delivery: Delivery, sealed: bytes | None) -> tuple[str, Sequence[Secret]]:
    """Return the URL of a webhook, and the secrets to sign its message with. Raises Undelivered, Unreadable.

    Jobs of earlier versions have the URL in clear, and encrypted only a secret of their own.
    """
    text = "" if sealed is None else services.adapters.vault.open(sealed)
    webhook = SealedWebhook(url=delivery.address, secret=text or None)
    if text.startswith("{"):
        webhook = msgspec.json.decode(text, type=SealedWebhook)
    if webhook.secret is not None:
        return webhook.url, secrets_in(webhook.secret)
    if not services.rules.webhook_secrets:
        raise Undelivered(
            "The delivery has no secret, and the setting `webhook_secret` is empty; set the setting, and deliver again."
        )
    return webhook.url, services.rules.webhook_secrets


def _error_text(error: Exception, delivery: Delivery) -> str:
    if isinstance(error, SignoffError):
        return error.message
    log.error("delivery_attempt_failed", delivery_id=delivery.id, job_id=delivery.job_id, exc_info=error)
    return "The message could not be sent because of a fault in this server; see the server's log."


def _failed_outcome(services: Services, delivery: Delivery, status: int | None, error: str) -> DeliveryOutcome:
    wait = scheduled_seconds(services.rules.webhook_waits_seconds, delivery.attempt, services.ids.random_float())
    if wait is None:
        return DeliveryOutcome(
            state="failed", status=status, error=f"{error} Given up after {delivery.attempt} attempts."
        )
    return DeliveryOutcome(state="due", status=status, error=error, after_seconds=wait)


async def _settle(services: Services, delivery: Delivery, outcome: DeliveryOutcome) -> None:
    """Store the outcome. If that fails, the lease lapses, and the message is sent again under the same id."""
    assert delivery.lease is not None  # noqa: S101 -- claiming a delivery sets its lease
    fields = {"delivery_id": delivery.id, "job_id": delivery.job_id, "host": delivery.host}
    try:
        is_settled = await services.store.deliveries.settle(delivery.id, delivery.lease, outcome)
    except Exception as error:  # noqa: BLE001 -- the store may be away
        log.warning("delivery_outcome_not_stored", error=repr(error), **fields)
        return
    if is_settled:
        services.runtime.metrics.delivered(delivery.kind, outcome.state)
    if is_settled and outcome.state == "failed":
        log.error("delivery_failed", error=outcome.error, **fields)
