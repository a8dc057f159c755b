"""The order in which workers claim jobs, as a reference for stores."""

from __future__ import annotations

from collections.abc import Iterable

from signoff.core.job import Job
from signoff.core.turn import MAX_USERS_OF_CLAIM, Turn


def chosen_in_turns(due: Iterable[Job], limit: int, turn: Turn) -> list[Job]:
    """Return the jobs among `due` that a claim must take, in order."""
    eligible = [job for job in due if job.model not in turn.full_models and job.user_id not in turn.full_users]
    highest = max((job.priority for job in eligible), default=0)
    eligible = [job for job in eligible if job.priority == highest]
    users = sorted({job.user_id for job in eligible}, key=lambda user: (user <= turn.after_user, user))
    users = users[: min(limit, MAX_USERS_OF_CLAIM)]
    if not users:
        return []
    share, rest = divmod(limit, len(users))
    chosen = list[Job]()
    for place, user in enumerate(users):
        theirs = sorted((job for job in eligible if job.user_id == user), key=lambda job: (job.due_at, job.id))
        chosen += theirs[: share + (place < rest)]
    return chosen
