"""Webhook messages and their signatures, as in Standard Webhooks 1.0.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from collections.abc import Sequence

import msgspec

from signoff.core.batch import ENDED, Batch
from signoff.core.job import Job
from signoff.core.signing import Secret
from signoff.core.wire import format_time, job_as_json


def webhook_body(job: Job) -> bytes:
    """Return the message about the end of `job`, the same at every attempt; a withheld answer is left out."""
    if job.status != "success":
        job = msgspec.structs.replace(job, response=None)
    kind = "job.succeeded" if job.status == "success" else "job.failed"
    return msgspec.json.encode({"type": kind, "timestamp": format_time(job.updated_at), "data": job_as_json(job)})


def batch_webhook_body(batch: Batch) -> bytes:
    """Return the message about the end of `batch`, in the form of OpenAI's webhook events."""
    ended_at = {status: getattr(batch, f"{status}_at") or 0 for status in ENDED}[batch.status]
    event = {
        "id": f"evt_{batch.number}",
        "object": "event",
        "created_at": ended_at // 1_000_000,
        "type": f"batch.{batch.status}",
        "data": {"id": batch.id},
    }
    return msgspec.json.encode(event)


def webhook_headers(message_id: str, now_us: int, body: bytes, secrets: Sequence[Secret]) -> dict[str, str]:
    """Return the headers of one attempt at `now_us` microseconds since 1970, with a signature for each of `secrets`."""
    timestamp = str(now_us // 1_000_000)
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(secret.sign(content) for secret in secrets),
    }
