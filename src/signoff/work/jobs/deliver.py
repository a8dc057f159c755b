"""Deliver: the end of a job is told to whoever asked to be told, until they have taken it or it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from signoff.core.allow_list import checked_host
from signoff.core.ask import Ask
from signoff.core.delivery import Deliver, Delivery, Hook, Message, Outcome
from signoff.core.envelope import reply_of
from signoff.core.job import Job
from signoff.core.result import result_of
from signoff.core.retry import scheduled_seconds
from signoff.core.signing import Secret, secrets_in
from signoff.core.webhook import body_of, headers_of
from signoff.errors import BadRequest, SignoffError, Undelivered
from signoff.work.jobs.query import find
from signoff.work.services import Desk

GONE = 410
log = structlog.get_logger()


def ends_told(desk: Desk, ask: Ask, name: str) -> tuple[Deliver, ...]:
    """Who is told of the end of a job that is called `name`; of one whose caller waits, whom the caller says.

    Raises AddressRefused, and BadRequest where there is no secret to sign with.
    """
    hooks = () if ask.deliver is None else (_webhook(desk, ask.deliver),)
    if ask.reply_to is not None:
        hooks = (*hooks, Deliver(kind="topic", address=ask.reply_to, host=ask.reply_to))
    return hooks if ask.lane == "now" else (*hooks, *mirrors(desk, name))


def mirrors(desk: Desk, name: str) -> tuple[Deliver, ...]:
    """Where the result of a job that is called `name` can be read beside the store."""
    prefix = desk.rules.redis_prefix
    return () if prefix is None else (Deliver(kind="redis", address=f"{prefix}:{name}", host="redis"),)


def _webhook(desk: Desk, hook: Hook) -> Deliver:
    host = checked_host(hook.url, desk.rules.reach)
    if hook.secret is None and not desk.rules.webhook_secrets:
        raise BadRequest("deliver needs a secret (whsec_…): this server has none of its own (webhook_secret).")
    sealed = None if hook.secret is None else desk.vault.seal(hook.secret.reveal())
    return Deliver(address=hook.url, host=host, sealed=sealed)


async def deliver(desk: Desk, delivery: Delivery) -> None:
    """One attempt of a leased delivery, and what comes of it. When cancelled, gives the attempt back."""
    try:
        outcome = await _outcome(desk, delivery)
    except asyncio.CancelledError:
        await asyncio.shield(desk.background.spawn(_settle(desk, delivery, Outcome(state="due", counts=False))))
        raise
    await _settle(desk, delivery, outcome)


async def _outcome(desk: Desk, delivery: Delivery) -> Outcome:
    try:
        status = await _carry(desk, delivery)
    except Exception as error:  # noqa: BLE001 -- whatever it was, another attempt may help
        return _failed(desk, delivery, None, _told(error, delivery))
    if status is None or 200 <= status < 300:
        return Outcome(state="done", status=status)
    if status == GONE:
        return Outcome(state="failed", status=status, error="The receiver wants no more: it answered 410.")
    return _failed(desk, delivery, status, f"The receiver answered with status {status}.")


async def _carry(desk: Desk, delivery: Delivery) -> int | None:
    courier = desk.couriers.get(delivery.kind)
    if courier is None:
        raise Undelivered(f"This server cannot deliver to {delivery.kind}.")
    return await courier.carry(_message(desk, delivery, await find(desk, delivery.job_id)))


def _message(desk: Desk, delivery: Delivery, job: Job) -> Message:
    match delivery.kind:
        case "webhook":
            body = body_of(job)
            headers = headers_of(delivery.id, desk.clock(), body, _secrets(desk, job))
            return Message(address=delivery.address, headers=headers, body=body)
        case "redis":
            return Message(address=delivery.address, body=msgspec.json.encode(result_of(job)))
        case "topic":
            return Message(address=delivery.address, headers={"message-id": delivery.id}, body=reply_of(job))


def _secrets(desk: Desk, job: Job) -> Sequence[Secret]:
    sealed = next((to.sealed for to in job.deliver if to.kind == "webhook"), None)
    if sealed is not None:
        return secrets_in(desk.vault.open(sealed))
    if not desk.rules.webhook_secrets:
        raise Undelivered("This server has no secret to sign with any more (webhook_secret).")
    return desk.rules.webhook_secrets


def _told(error: Exception, delivery: Delivery) -> str:
    if isinstance(error, SignoffError):
        return error.message
    log.error("a delivery failed unexpectedly", delivery=delivery.id, exc_info=error)
    return "The message could not be sent, because of a fault in this server; its log says more."


def _failed(desk: Desk, delivery: Delivery, status: int | None, error: str) -> Outcome:
    wait = scheduled_seconds(desk.rules.webhook_waits_seconds, delivery.attempt, desk.dice())
    if wait is None:
        return Outcome(state="failed", status=status, error=f"{error} Given up after {delivery.attempt} attempts.")
    return Outcome(state="due", status=status, error=error, after_seconds=wait)


async def _settle(desk: Desk, delivery: Delivery, outcome: Outcome) -> None:
    """Writes it down; where that fails the lease lapses, and the message goes out again under the same id."""
    assert delivery.lease is not None  # noqa: S101 -- a claimed delivery has one
    about = {"delivery": delivery.id, "job": delivery.job_id, "host": delivery.host}
    try:
        stood = await desk.store.deliveries.settle(delivery.id, delivery.lease, outcome)
    except Exception as error:  # noqa: BLE001 -- the store is away
        log.warning("could not write down what became of a delivery", error=repr(error), **about)
        return
    if stood and outcome.state == "failed":
        log.error("a delivery was given up", error=outcome.error, **about)
