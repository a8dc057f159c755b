"""Groups of an error budget: whose answers are counted together, each group in periods of its own."""

from typing import Any, cast

import msgspec

from signoff.core.job import Job
from signoff.core.model import is_name
from signoff.core.reviews.request_values import context_of, request_values

# All answers of further groups are held, so that callers who invent groups fill no table.
MAX_GROUPS = 1000
METADATA_PREFIX = "metadata."
# Name of the group of the jobs without a value.
NO_VALUE = ""


def check_per(per: str | None) -> None:
    """Raise ValueError if `per`, the member of a budget, names no kind of group."""
    if per is None or per in {"user", "prompt_version"}:
        return
    if not per.startswith(METADATA_PREFIX) or not is_name(per.removeprefix(METADATA_PREFIX)):
        raise ValueError(f"`budget.per` must be `user`, `prompt_version` or `metadata.NAME` (got {per!r}).")


def group_words(per: str) -> str:
    """Return the words for one group.

    >>> group_words("prompt_version"), group_words("metadata.team")
    ('one version of a prompt', 'one value of metadata.team')
    """
    match per:
        case "user":
            return "one user"
        case "prompt_version":
            return "one version of a prompt"
        case _:
            return f"one value of {per}"


def group_of(job: Job, per: str) -> str | None:
    """Return the name of the group of `job`: a user's id, `PROMPT@VERSION`, or the value of a member of the metadata.

    The name is NO_VALUE for a job without a prompt or without this member. Return None if the value cannot name a
    group, so that the answer must be held.
    """
    match per:
        case "user":
            return str(job.user_id)
        case "prompt_version":
            return NO_VALUE if job.prompt is None else f"{job.prompt}@{job.prompt_version}"
        case _:
            return _metadata_group(job, per.removeprefix(METADATA_PREFIX))


def _metadata_group(job: Job, name: str) -> str | None:
    tags = request_values(context_of(job), {"request.tags"})["tags"]
    if not isinstance(tags, dict):
        return None
    value: Any = cast("dict[str, Any]", tags).get(name)
    if value is None or value == NO_VALUE:
        return NO_VALUE
    if not isinstance(value, str):
        value = msgspec.json.encode(value).decode() if isinstance(value, bool | int | float) else ""
    return value if is_name(value) else None
