"""A job as the wire has it, at every door and in every delivery."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from signoff.core.job import Job

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def as_seen(job: Job) -> dict[str, Any]:
    """A job as the wire has it."""
    return {
        "job_id": job.id,
        "status": job.status,
        "payload": msgspec.Raw(job.body),
        "response": None if job.response is None else msgspec.Raw(job.response),
        "created_at": when(job.created_at),
        "updated_at": when(job.updated_at),
        "model": job.target,
        "error": job.error,
        "attempt": job.attempt,
        "round": job.round,
        "retry_of": job.retry_of,
        "metadata": msgspec.Raw(job.metadata),
    }


def when(microseconds: int) -> str:
    """RFC 3339, UTC, microseconds, `Z`."""
    return (EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")
