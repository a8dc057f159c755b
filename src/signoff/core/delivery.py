"""A delivery: the end of a job that somebody is to be told of, and how far that has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from signoff.core.signing import Secret

DeliveryKind = Literal["webhook", "redis", "topic"]
DeliveryState = Literal["due", "done", "failed"]


class WebhookTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where a caller wants the end of a job told, and the secret to sign it with; None for the deployment's own."""

    url: str
    secret: Secret | None = None


class DeliveryTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where the end of a job is told, once of each kind. `sealed` is the receiver's own secret; None stands for the
    deployment's.
    """

    kind: DeliveryKind = "webhook"
    address: str
    host: str
    sealed: bytes | None = None

    def message_id(self, job_id: str) -> str:
        """The id of the message, the same at every attempt."""
        return f"msg_{job_id}" if self.kind == "webhook" else f"msg_{job_id}_{self.kind}"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message, with an id that is the same at every attempt. `failed` is given up. Times are microseconds."""

    id: str
    job_id: str
    kind: DeliveryKind
    address: str
    host: str
    state: DeliveryState = "due"
    attempt: int = 0
    due_at: int
    lease: str | None = None
    lease_until: int | None = None
    last_status: int | None = None
    last_error: str | None = None
    created_at: int
    done_at: int | None = None


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What a courier carries."""

    address: str
    headers: Mapping[str, str] = {}
    body: bytes


class DeliveryOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt. `due` is one that goes on after `after_seconds`; `counts`: as one of its attempts."""

    state: DeliveryState
    status: int | None = None
    error: str | None = None
    after_seconds: float = 0
    counts: bool = True
