"""The limits that this process knows: a copy of the store's, dropped when they change anywhere."""

from __future__ import annotations

from collections.abc import Iterable

from signoff.core.job import Job
from signoff.core.limits import Limit, limit_name
from signoff.runtime.snapshot import Snapshot
from signoff.store import Quotas


class LimitCache:
    """Limits by whom and what they are for."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._limits = Snapshot(self._read)

    async def of(self, job: Job) -> tuple[tuple[str, Limit], ...]:
        """What limits a job, each with the name of the meter that counts for it."""
        known = await self._limits.get()
        return tuple(_of(known, job)) if known else ()

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._limits.invalidate()

    async def _read(self) -> dict[str, Limit]:
        return {limit.name: limit for limit in await self._quotas.limits()}


def _of(known: dict[str, Limit], job: Job) -> Iterable[tuple[str, Limit]]:
    for model in (None, job.model):
        mine = limit_name("user", job.user_id, model)
        token, together = limit_name("token", job.token_id, model), limit_name("all", 0, model)
        for name, limit in (
            (mine, known.get(mine) or known.get(limit_name("each", 0, model))),
            (token, known.get(token)),
            (together, known.get(together)),
        ):
            if limit is not None:
                yield name, limit
