"""Prices, and sums of what was used, in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from signoff.core.job import Job
from signoff.core.price import Price
from signoff.core.usage import DAY_US, HOUR_US, STALE, Dimension, Line, Question, Sum, sum_of
from simulation.tables import Tables, Tx, Way


class MemoryLedger:
    """The ledger in memory; see `store.Ledger`."""

    def __init__(self, tables: Tables, way: Way) -> None:
        self._tables = tables
        self._way = way

    async def prices(self) -> list[Price]:
        return await self._way.send(lambda _: [price for _, price in sorted(self._tables.prices.items())], writes=False)

    async def put_price(self, price: Price) -> None:
        def put(tx: Tx) -> None:
            self._tables.prices[price.model, price.valid_from] = price
            self._tell(tx)

        await self._way.send(put, writes=True)

    async def drop_price(self, model: str, valid_from: int) -> bool:
        def drop(tx: Tx) -> bool:
            dropped = self._tables.prices.pop((model, valid_from), None) is not None
            if dropped:
                self._tell(tx)
            return dropped

        return await self._way.send(drop, writes=True)

    async def keep(self, job: Job) -> None:
        def keep(tx: Tx) -> None:
            self._tables.wasted.append(msgspec.structs.replace(job, status=STALE, created_at=tx.now))

        await self._way.send(keep, writes=True)

    async def used(self, question: Question) -> tuple[list[Line], Sum]:
        def look(_: Tx) -> tuple[list[Line], Sum]:
            tables = self._tables
            jobs = [*tables.jobs.values(), *tables.past, *tables.wasted]
            found = [job for job in jobs if _is_asked(job, question)]
            groups = defaultdict[tuple[str | int | None, ...], list[Job]](list)
            for job in found:
                groups[tuple(self._dimension(name, job) for name in question.by)].append(job)
            lines = [
                Line(of=dict(zip(question.by, key, strict=True)), sum=added(groups[key]))
                for key in sorted(groups, key=lambda key: [(value is not None, value) for value in key])
            ]
            page = lines[question.offset : question.offset + question.limit] if question.by else []
            return page, added(found)

        return await self._way.send(look, writes=False)

    def _dimension(self, name: Dimension, job: Job) -> str | int | None:
        match name:
            case "user":
                users = self._tables.users.values()
                return next((user.email for user in users if user.id == job.user_id), None)
            case "token":
                return job.token_id
            case "hour" | "day":
                unit = HOUR_US if name == "hour" else DAY_US
                return job.created_at // unit * unit
            case _:
                return getattr(job, name)

    def _tell(self, tx: Tx) -> None:
        self._tables.versions["prices"] += 1
        tx.news.append(("prices", ""))


def added(jobs: Iterable[Job]) -> Sum:
    """What all of them took."""
    return plus(*(msgspec.structs.replace(sum_of(job), jobs=int(job.status != STALE)) for job in jobs))


def plus(*sums: Sum) -> Sum:
    """The sum of sums."""
    members = zip(*map(msgspec.structs.astuple, (Sum(), *sums)), strict=True)
    return Sum(**dict(zip(Sum.__struct_fields__, map(sum, members), strict=True)))


def _is_asked(job: Job, question: Question) -> bool:
    since = question.since // HOUR_US * HOUR_US
    until = None if question.until is None else -(-question.until // HOUR_US) * HOUR_US
    is_then = job.created_at >= since and (until is None or job.created_at < until)
    is_theirs = question.user_id in {None, job.user_id} and question.model in {None, job.model}
    return is_then and is_theirs
