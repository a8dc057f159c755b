"""Webhooks: what a message is and how it is signed, as Standard Webhooks 1.0 has it.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from signoff.core.job import Job
from signoff.core.wire import as_seen, when

SECRET_PREFIX = "whsec_"  # noqa: S105 -- not a secret, but how one begins
SECRET_BYTES = range(24, 65)


class Secret:
    """A signing key, `whsec_` and base64; never shown, not even by `repr`. Raises ValueError for what is none."""

    def __init__(self, text: str) -> None:
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX).rstrip("=") + "==", validate=True)
        except ValueError:
            key = b""
        if not text.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
            raise ValueError("A webhook secret is whsec_ and the base64 of 24 to 64 random bytes.")
        self._text, self._key = text, key

    def __repr__(self) -> str:
        return "Secret(…)"

    def reveal(self) -> str:
        """The secret as it was given."""
        return self._text

    def sign(self, content: bytes) -> str:
        """The signature of `content`, version 1."""
        return "v1," + base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()


def secrets_in(text: str) -> tuple[Secret, ...]:
    """The secrets of a text, between blanks: two while one replaces the other. Raises ValueError."""
    return tuple(Secret(part) for part in text.split())


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """Where a caller wants the end of a job told, and the secret to sign it with; None for the deployment's own."""

    url: str
    secret: Secret | None = None


def body_of(job: Job) -> bytes:
    """The message that tells of a job's end; the same at every attempt. A refused answer is not in it."""
    if job.status != "success":
        job = msgspec.structs.replace(job, response=None)
    kind = "job.succeeded" if job.status == "success" else "job.failed"
    return msgspec.json.encode({"type": kind, "timestamp": when(job.updated_at), "data": as_seen(job)})


def headers_of(message_id: str, now_us: int, body: bytes, secrets: Sequence[Secret]) -> dict[str, str]:
    """The headers of one attempt, at `now_us` microseconds since 1970, with a signature for each of `secrets`."""
    timestamp = str(now_us // 1_000_000)
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(secret.sign(content) for secret in secrets),
    }
