"""The JSON form of a job, for every door and every delivery."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from signoff.core.job import Job
from signoff.core.price import NANO, dollars
from signoff.core.times import EPOCH


def job_as_json(job: Job, left_at: int | None = None) -> dict[str, Any]:
    """Return the JSON form of `job`; body, answer and metadata are included as they are.

    `left_at` is the time at which a caller left who waited for the answer; None if nobody has left.
    """
    return {
        "job_id": job.id,
        "status": job.status,
        "payload": msgspec.Raw(job.body),
        "response": None if job.response is None else msgspec.Raw(job.response),
        "created_at": format_time(job.created_at),
        "updated_at": format_time(job.updated_at),
        "model": job.target,
        "error": job.error,
        "attempt": job.attempt,
        "round": job.round,
        "retry_of": job.retry_of,
        "usage": usage_as_json(job),
        "cost": None if job.cost_nanodollars is None else dollars(job.cost_nanodollars, NANO),
        "seconds": {
            "queued": _seconds(job.queued_us),
            "first_byte": _seconds(job.ttft_us),
            "answer": _seconds(job.generation_us),
        },
        "parent": job.parent_id,
        "node": job.node,
        "parked_at": None if job.parked_at is None else format_time(job.parked_at),
        "prompt": job.prompt,
        "prompt_version": job.prompt_version,
        "metadata": msgspec.Raw(job.metadata),
        "cache": job.cache,
        "cache_key": job.cache_key,
        "caller_left_at": None if left_at is None else format_time(left_at),
    }


def usage_as_json(job: Job) -> dict[str, int] | None:
    """Return the tokens of all attempts of the job; None if there are none."""
    if not job.prompt_tokens and not job.completion_tokens:
        return None
    return {
        "prompt_tokens": job.prompt_tokens,
        "cached_tokens": job.cached_tokens,
        "completion_tokens": job.completion_tokens,
    }


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1_000_000


def format_time(microseconds: int) -> str:
    """Format a time in RFC 3339, UTC, with microseconds and `Z`."""
    return (EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(time: datetime) -> int:
    """Return microseconds since 1970; a time without a zone is UTC. Raises ValueError outside the years 1 to 9999."""
    try:
        utc = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("The time must be in the years 1 to 9999, UTC.") from None
    return (utc - EPOCH) // timedelta(microseconds=1)
