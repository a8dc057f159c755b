"""Copies of jobs for reviewers alone: an answer under audit whose caller has cancelled the job, and planted items.

A copy has no caller: it is delivered to nobody, its owner does not see it, and it counts in no report.
"""

import uuid

import msgspec

from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.reviews.planted import PlantedItem
from signoff.core.tokens import Usage

# What belongs to the caller of a job, to its attempts, or to a verdict.
_RESET = {
    "status": "human",
    "error": None,
    "client_id": None,
    "idempotency_key": None,
    "fingerprint": None,
    "upstream_object_id": None,
    "retry_of": None,
    "key_id": None,
    "headers": None,
    "deliver": (),
    "lease": None,
    "lease_until": None,
    "draft": None,
    "review_lease": None,
    "review_lease_until": None,
    "review_deadline": None,
    "decision": None,
    "assignee": None,
    "escalated_at": None,
    "release_at": None,
    "parent_id": None,
    "parent_round": None,
    "node": None,
    "pipeline_id": None,
    "pipeline_version": None,
    "parked_at": None,
}


def copy_for_reviewers(job: Job, now: int) -> Job:
    """Return the copy of `job` that goes on in review after the job was cancelled, at the time `now`.

    Its round is the first one, and its id is made from that of the job.
    """
    changes = {"id": _id_after(job.id, now), "copy_of": job.id, "round": 1, "seq": first_seq(job)}
    return msgspec.structs.replace(job, **(_RESET | changes | _times(now)))


def first_seq(job: Job) -> int:
    """Return the number of the first event of a copy: that with which other jobs like `job` are held."""
    return 2 if job.is_waiting_call else 3


def planted_copy(item: PlantedItem, like: Job, job_id: str, now: int) -> Job:
    """Return the job with the id `job_id` that presents `item` to reviewers, beside the job `like`."""
    ruling = None if like.ruling is None else msgspec.structs.replace(like.ruling, coin=None)
    changes = {
        "id": job_id,
        "copy_of": like.id,
        "path": item.path,
        "body": item.body,
        "response": item.response,
        "usage": Usage(prompt_tokens=like.prompt_tokens, completion_tokens=like.completion_tokens),
        "ruling": ruling,
        "attempt": 1,
        "round": 1,
        "seq": first_seq(like),
        "review_queue": None if ruling is None else ruling.queue,
        "review_priority": like.priority if ruling is None or ruling.priority is None else ruling.priority,
    }
    return msgspec.structs.replace(like, **(_RESET | changes | _times(now)))


def is_planted(job: Job) -> bool:
    """Return True if `job` presents a planted item: it is a copy, and not that of a job that was cancelled."""
    return job.copy_of is not None and job.id != _id_after(job.copy_of, job.created_at)


def _times(now: int) -> dict[str, int]:
    return {"created_at": now, "updated_at": now, "due_at": now, "held_at": now}


def _id_after(job_id: str, now: int) -> str:
    """Return a UUIDv7 of the time `now`, in microseconds, whose random bits are a hash of another id."""
    digest = int(fingerprint(b"signoff copy", job_id.encode()), 16)
    random_bits = digest & ((1 << 74) - 1)
    value = (now // 1000 & ((1 << 48) - 1)) << 80 | 7 << 76 | (random_bits >> 62) << 64 | 2 << 62
    return str(uuid.UUID(int=value | random_bits & ((1 << 62) - 1)))
