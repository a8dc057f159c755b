"""In-memory prices and totals of usage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from signoff.core.audit import change_of
from signoff.core.job import Job
from signoff.core.latency import LatencyQuery, LatencyRow, histogram_of
from signoff.core.price import Price
from signoff.core.times import DAY_US, HOUR_US
from signoff.core.usage import STALE, Dimension, UsageQuery, UsageRow, UsageTotals, totals_of
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, record


class MemoryUsageRecords:
    """In-memory implementation of `accounts.UsageRecords`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def prices(self) -> list[Price]:
        return await self._connection.send(
            lambda _: [price for _, price in sorted(self._tables.prices.items())], writes=False
        )

    async def put_price(self, price: Price) -> None:
        actor = current_actor()

        def put(tx: Tx) -> None:
            old = self._tables.prices.get((price.model, price.valid_from))
            record(self._tables, tx, actor, change_of("price", price.model, old, price))
            self._tables.prices[price.model, price.valid_from] = price
            self._bump(tx)

        await self._connection.send(put, writes=True)

    async def drop_price(self, model: str, valid_from: int) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            dropped = self._tables.prices.pop((model, valid_from), None)
            if dropped is not None:
                record(self._tables, tx, actor, change_of("price", model, dropped, None))
                self._bump(tx)
            return dropped is not None

        return await self._connection.send(drop, writes=True)

    async def record(self, job: Job) -> None:
        def record(tx: Tx) -> None:
            self._tables.stale_attempts.append(msgspec.structs.replace(job, status=STALE, created_at=tx.now))

        await self._connection.send(record, writes=True)

    async def report(self, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
        def read(_: Tx) -> tuple[list[UsageRow], UsageTotals]:
            tables = self._tables
            jobs = [*tables.jobs.values(), *tables.purged_jobs, *tables.stale_attempts]
            matching = [job for job in jobs if job.copy_of is None and _matches(job, query)]
            groups = defaultdict[tuple[str | int | None, ...], list[Job]](list)
            for job in matching:
                groups[tuple(self._dimension(name, job) for name in query.by)].append(job)
            rows = [
                UsageRow(dimensions=dict(zip(query.by, key, strict=True)), totals=added(groups[key]))
                for key in sorted(groups, key=lambda key: [(value is not None, value) for value in key])
            ]
            if query.by_cost:
                rows.sort(key=lambda row: (-row.totals.cost_nanodollars, -row.totals.jobs))
            page = rows[query.offset : query.offset + query.limit] if query.by else []
            return page, added(matching)

        return await self._connection.send(read, writes=False)

    async def latencies(self, query: LatencyQuery) -> list[LatencyRow]:
        def read(_: Tx) -> list[LatencyRow]:
            of_query = UsageQuery(since=query.since, until=query.until, user_id=query.user_id)
            jobs = [*self._tables.jobs.values(), *self._tables.purged_jobs]
            groups = defaultdict[str | int | None, list[Job]](list)
            for job in jobs:
                if (
                    job.is_terminal
                    and job.copy_of is None
                    and job.generation_us is not None
                    and _matches(job, of_query)
                ):
                    groups[None if query.by is None else self._dimension(query.by, job)].append(job)
            rows = [
                LatencyRow(
                    group=group,
                    whole=histogram_of((job.ttft_us or 0) + (job.generation_us or 0) for job in of_group),
                    first=histogram_of(job.ttft_us or 0 for job in of_group),
                )
                for group, of_group in groups.items()
            ]
            return sorted(rows, key=lambda row: -row.whole.total)

        return await self._connection.send(read, writes=False)

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

    def _bump(self, tx: Tx) -> None:
        self._tables.versions["prices"] += 1
        tx.changes.append(("prices", ""))


def added(jobs: Iterable[Job]) -> UsageTotals:
    """Return the total usage of `jobs`."""
    return plus(*(msgspec.structs.replace(totals_of(job), jobs=int(job.status != STALE)) for job in jobs))


def plus(*sums: UsageTotals) -> UsageTotals:
    """Return the sum of totals."""
    members = zip(*map(msgspec.structs.astuple, (UsageTotals(), *sums)), strict=True)
    return UsageTotals(**dict(zip(UsageTotals.__struct_fields__, map(sum, members), strict=True)))


def _matches(job: Job, query: UsageQuery) -> bool:
    since = query.since // HOUR_US * HOUR_US
    until = None if query.until is None else -(-query.until // HOUR_US) * HOUR_US
    is_in_period = job.created_at >= since and (until is None or job.created_at < until)
    is_in_scope = query.user_id in {None, job.user_id} and query.model in {None, job.model}
    return is_in_period and is_in_scope and query.prompt in {None, job.prompt}
