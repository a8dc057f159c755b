"""Copies of jobs for reviewers alone: an answer under audit whose caller has cancelled the job, and planted items.

A copy has no caller: it is delivered to nobody, its owner does not see it, and it counts in no report.
"""

import uuid
from typing import Any

import msgspec

from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.reviews.planted import PlantedItem
from signoff.core.tokens import Usage

# Columns that a copy takes from its job. Any other has a value of its own, or its default, because it belongs to the
# caller of the job, to its place in a batch or in a run, to its attempts, or to a verdict.
COPIED = (
    *("door", "lane", "user_id", "token_id", "target", "model", "path", "body", "response", "usage", "metadata"),
    *("priority", "policy", "prompt", "prompt_version", "attempt", "max_attempts"),
    *("ruling", "review_queue", "review_priority"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanodollars"),
    *("queued_us", "ttft_us", "generation_us", "cache", "cache_key"),
)


def copy_for_reviewers(job: Job, now: int) -> Job:
    """Return the copy of `job` that goes on in review after the job was cancelled, at the time `now`.

    Its round is the first one, and its id is made from that of the job.
    """
    return _copy(job, now, id=_id_after(job.id, now))


def first_seq(job: Job) -> int:
    """Return the number of the first event of a copy: that with which other jobs like `job` are held."""
    return 2 if job.is_waiting_call else 3


def planted_copy(item: PlantedItem, like: Job, job_id: str, now: int) -> Job:
    """Return the job with the id `job_id` that presents `item` to reviewers, beside the job `like`."""
    ruling = None if like.ruling is None else msgspec.structs.replace(like.ruling, coin=None)
    return _copy(
        like,
        now,
        id=job_id,
        path=item.path,
        body=item.body,
        response=item.response,
        usage=Usage(prompt_tokens=like.prompt_tokens, completion_tokens=like.completion_tokens),
        ruling=ruling,
        attempt=1,
        review_queue=None if ruling is None else ruling.queue,
        review_priority=like.priority if ruling is None or ruling.priority is None else ruling.priority,
    )


def is_planted(job: Job) -> bool:
    """Return True if `job` presents a planted item: it is a copy, and not that of a job that was cancelled."""
    return job.copy_of is not None and job.id != _id_after(job.copy_of, job.created_at)


def _copy(job: Job, now: int, **changes: Any) -> Job:
    """Return a copy of `job` that is held since `now`, with other values for the columns in `changes`."""
    columns: dict[str, Any] = {name: getattr(job, name) for name in COPIED}
    columns |= {"status": "human", "copy_of": job.id, "round": 1, "seq": first_seq(job)}
    columns |= dict.fromkeys(("created_at", "updated_at", "due_at", "held_at"), now)
    return Job(**(columns | changes))


def _id_after(job_id: str, now: int) -> str:
    """Return a UUIDv7 of the time `now`, in microseconds, whose random bits are a hash of another id."""
    digest = int(fingerprint(b"signoff copy", job_id.encode()), 16)
    random_bits = digest & ((1 << 74) - 1)
    value = (now // 1000 & ((1 << 48) - 1)) << 80 | 7 << 76 | (random_bits >> 62) << 64 | 2 << 62
    return str(uuid.UUID(int=value | random_bits & ((1 << 62) - 1)))
