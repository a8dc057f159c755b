"""Deliveries: messages about the end of a job, their receivers, and their state."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from signoff.core.signing import Secret

DeliveryKind = Literal["webhook", "redis", "topic"]
DeliveryState = Literal["due", "done", "failed"]


class WebhookTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook that a caller asks for."""

    url: str
    """Address that gets the message."""
    secret: Secret | None = None
    """Secret to sign the message with; None for the one of the deployment."""


class SealedWebhook(msgspec.Struct, frozen=True):
    """Parts of a webhook that are stored encrypted."""

    url: str
    """The whole URL, as the path is often a secret."""
    secret: str | None = None
    """Secret to sign the message with; None for the one of the deployment."""


class ReplyAddress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Address at which the sender of a message on a topic expects the answer."""

    topic: str | None = None
    """Topic of the answer; None for the response topic of the stream."""
    correlation_id: str | None = None
    """Id of the sender's own that the answer carries; None for none."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers `reply-to` and `correlation-id` of the outgoing message, where they are set."""
        headers = {"reply-to": self.topic, "correlation-id": self.correlation_id}
        return {name: value for name, value in headers.items() if value is not None}


class DeliveryTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver of the end of a job; a job has at most one of each kind."""

    kind: DeliveryKind = "webhook"
    """Way to the receiver."""
    address: str
    """Host of a webhook, whose URL is in `sealed`; Redis key, or name of a stream.

    A job of an earlier version may have the URL here, in clear, until a key rotation moves it to `sealed`.
    """
    host: str
    """Host of the receiver, or its name again if it has none; few messages go to one host at a time."""
    sealed: bytes | None = None
    """Encrypted URL of a webhook with the secret of its own, if it has one; None for other receivers."""
    reply: ReplyAddress = ReplyAddress()
    """Reply address of a message on a topic."""

    @property
    def clear_url(self) -> str:
        """URL of a webhook that an earlier version stored in clear; empty for all others."""
        return self.address if self.kind == "webhook" and "://" in self.address else ""

    def message_id(self, job_id: str) -> str:
        """Return the id of the message, which is the same at every attempt."""
        return f"msg_{job_id}" if self.kind == "webhook" else f"msg_{job_id}_{self.kind}"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message to one receiver, as it is stored. Times are microseconds since 1970, UTC."""

    id: str
    """Id of the message, the same at every attempt."""
    job_id: str
    """Id of the job or the batch that has ended."""
    kind: DeliveryKind
    """Way to the receiver."""
    address: str
    """See `DeliveryTarget.address`."""
    host: str
    """See `DeliveryTarget.host`."""
    state: DeliveryState = "due"
    """`due` until it is `done`, or `failed` once its attempts are used up or its receiver refuses it for good."""
    attempt: int = 0
    """Number of attempts that were started and count."""
    due_at: int
    """Time of the next attempt."""
    lease: str | None = None
    """Lease token of the dispatcher that is sending it; None if it is not being sent."""
    lease_until: int | None = None
    """Time at which the lease ends."""
    last_status: int | None = None
    """HTTP status of the last attempt, if there was one."""
    last_error: str | None = None
    """Error of the last attempt; None after a success."""
    created_at: int
    """Time of creation."""
    done_at: int | None = None
    """Time at which it became `done` or `failed`."""


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message in the form that a deliverer sends."""

    address: str
    """URL of a webhook, Redis key, name of a stream, or topic."""
    headers: Mapping[str, str] = {}
    """Headers of the message, by name in lower case."""
    body: bytes
    """The message, as JSON."""


class DeliveryOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one attempt to send a delivery."""

    state: DeliveryState
    """New state of the delivery; `due` for another attempt."""
    status: int | None = None
    """HTTP status of the receiver, if there was one."""
    error: str | None = None
    """Fault in words; None for a success."""
    after_seconds: float = 0
    """Seconds until the next attempt, for the state `due`."""
    counts: bool = True
    """False if it does not count as one of the attempts."""
