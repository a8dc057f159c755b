"""Cache of the limits, cleared when they change in any process."""

from collections.abc import Iterable

from signoff.accounts import Limits
from signoff.core.job import Job
from signoff.core.limits import Limit, limit_name
from signoff.runtime.snapshot import Snapshot


class LimitCache:
    """Limits by name."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._snapshot = Snapshot(self._read)

    async def of(self, job: Job) -> tuple[tuple[str, Limit], ...]:
        """Return the limits that apply to a job, each with the name of its counter."""
        limits = await self._snapshot.get()
        return tuple(_matching(limits, job)) if limits else ()

    def invalidate(self) -> None:
        """Clear the cache."""
        self._snapshot.invalidate()

    async def _read(self) -> dict[str, Limit]:
        return {limit.name: limit for limit in await self._limits.all()}


def _matching(limits: dict[str, Limit], job: Job) -> Iterable[tuple[str, Limit]]:
    """Yield the limits for all models and for the job's model; a user's own limit replaces that of each user."""
    for model in (None, job.model):
        user = limit_name("user", job.user_id, model)
        token, everyone = limit_name("token", job.token_id, model), limit_name("all", 0, model)
        for name, limit in (
            (user, limits.get(user) or limits.get(limit_name("each", 0, model))),
            (token, limits.get(token)),
            (everyone, limits.get(everyone)),
        ):
            if limit is not None:
                yield name, limit
