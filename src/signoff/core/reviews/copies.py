"""Copies of jobs for reviewers alone: an answer under audit whose caller has cancelled the job, and planted items.

A copy has no caller: it is delivered to nobody, its owner does not see it, and it counts in no report.
"""

import uuid
from typing import Any

import msgspec

from signoff.core.dialects.answer import usage_of_body
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.reviews.planted import PlantedItem
from signoff.core.reviews.planted_signals import signals_of_copy
from signoff.core.reviews.strictness import deadline_of
from signoff.core.times import SECOND_US
from signoff.core.tokens import Usage

# Columns that a copy takes from its job. Any other has a value of its own, or its default, because it belongs to the
# caller of the job, to its place in a batch or in a run, to its attempts, or to a verdict.
COPIED = (
    *("door", "lane", "user_id", "token_id", "target", "model", "path", "body", "response", "usage", "metadata"),
    *("priority", "policy", "prompt", "prompt_version", "max_attempts"),
    *("ruling", "review_queue", "review_priority"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanodollars"),
    *("queued_us", "ttft_us", "generation_us", "cache", "cache_key"),
)


def copy_for_reviewers(job: Job, now: int) -> Job:
    """Return the copy of `job` that goes on in review after the job was cancelled, at the time `now`.

    Its round is the first one. Its id is made from that of the job, and its times are as far apart as those of the job.
    """
    created_at = now - _age(job)
    return _copy(job, now, id=_id_at(created_at, job.id), created_at=created_at)


def first_seq(job: Job) -> int:
    """Return the number of the first event of a copy: that with which other jobs like `job` are held."""
    return 2 if job.is_waiting_call else 3


def planted_copy(item: PlantedItem, like: Job, secret: str, now: int) -> Job:
    """Return the job that presents `item` to reviewers, beside the job `like`, which is held.

    Its id, and how much its times differ from those of `like`, are made from `secret`, a random text that nobody reads.
    What the desk shows of the answer, such as its signals and tokens, is that of `item`.
    """
    digest = fingerprint(b"signoff planted copy", secret.encode())
    pace = 0.8 + 0.4 * int(digest[:8], 16) / (1 << 32)
    created_at = now - round(_age(like) * pace)
    ruling = None if like.ruling is None else msgspec.structs.replace(like.ruling, coin=None)
    job = _copy(
        like,
        now,
        id=_id_at(created_at, secret),
        created_at=created_at,
        path=item.path,
        body=item.body,
        response=item.response,
        cache_key=None if like.cache_key is None else f"{like.cache_key.rpartition('-')[0]}-{digest}",
        review_queue=None if ruling is None else ruling.queue,
        review_priority=like.priority if ruling is None or ruling.priority is None else ruling.priority,
        **_usage_of(item, like),
        **{name: _scaled(getattr(like, name), pace) for name in ("queued_us", "ttft_us", "generation_us")},
    )
    if ruling is None:
        return job
    ruling = msgspec.structs.replace(ruling, signals=signals_of_copy(job, ruling.signals, pace))
    return msgspec.structs.replace(job, ruling=ruling)


def _usage_of(item: PlantedItem, like: Job) -> dict[str, Any]:
    """Return the tokens and the cost of `item`, by column, as far as `like` has them."""
    tokens = like.prompt_tokens + like.completion_tokens
    usage = usage_of_body(item.response, item.body) if tokens else None
    if usage is None:
        return {"usage": like.usage and Usage()}
    return {
        "usage": usage,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_nanodollars": _scaled(like.cost_nanodollars, (usage.prompt_tokens + usage.completion_tokens) / tokens),
    }


def _scaled(number: int | None, factor: float) -> int | None:
    return None if number is None else round(number * factor)


def _age(job: Job) -> int:
    """Return the time from the admission of `job` to its hold, in microseconds."""
    return 0 if job.held_at is None else max(0, job.held_at - job.created_at)


def is_planted(job: Job) -> bool:
    """Return True if `job` presents a planted item: it is a copy, and not that of a job that was cancelled."""
    return job.copy_of is not None and job.id != _id_at(job.created_at, job.copy_of)


def _copy(job: Job, now: int, **changes: Any) -> Job:
    """Return a copy of `job` that is held since `now`, with other values for the columns in `changes`."""
    columns: dict[str, Any] = {name: getattr(job, name) for name in COPIED}
    columns |= {"status": "human", "copy_of": job.id, "attempt": 1, "round": 1, "seq": first_seq(job)}
    columns |= {"updated_at": now, "held_at": now, "due_at": changes["created_at"]}
    seconds = deadline_of(job.ruling, job.policy).seconds
    if seconds is not None:  # nothing happens then, as with every answer that needs a single decision
        columns["review_deadline"] = now + round(seconds * SECOND_US)
    return Job(**(columns | changes))


def _id_at(at: int, text: str) -> str:
    """Return a UUIDv7 of the time `at`, in microseconds, whose random bits are a hash of `text`."""
    digest = int(fingerprint(b"signoff copy", text.encode()), 16)
    random_bits = digest & ((1 << 74) - 1)
    value = (at // 1000 & ((1 << 48) - 1)) << 80 | 7 << 76 | (random_bits >> 62) << 64 | 2 << 62
    return str(uuid.UUID(int=value | random_bits & ((1 << 62) - 1)))
