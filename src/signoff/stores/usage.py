"""Prices and usage reports, in SQL."""

import asyncio
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.audit import change_of
from signoff.core.job import Job
from signoff.core.latency import LatencyQuery, LatencyRow
from signoff.core.price import Price
from signoff.core.times import DAY_US, HOUR_US
from signoff.core.usage import STALE, Dimension, UsageQuery, UsageRow, UsageTotals, totals_of
from signoff.errors import Overloaded
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.latencies import count_latency, latencies_statement, rows_of
from signoff.stores.people_schema import users
from signoff.stores.periods import hours_of, ranges_of
from signoff.stores.schema import jobs, prices, usage_days, usage_hours
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

_DIMENSIONS = ("user_id", "token_id", "target", "model", "door", "status", "cache", "prompt", "prompt_version")
_dimensions_of = attrgetter(*_DIMENSIONS)
_TOTALS = UsageTotals.__struct_fields__
_GROUP = ("hour", *_DIMENSIONS)
_COLUMNS = (*_GROUP, *_TOTALS)
_SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
)
_UNFINISHED = jobs.c.status.in_([sa.literal_column("'bot'"), sa.literal_column("'human'")])
_HAS_TOKENS = jobs.c.prompt_tokens + jobs.c.completion_tokens > 0
# A report may read many rows. The bound leaves connections of the pool to other reads.
MAX_PARALLEL_REPORTS = 2
REPORT_WAIT_SECONDS = 30.0


class SqlUsageRecords:
    """Prices and usage in a SQL database; see `accounts.UsageRecords`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._report_slots = asyncio.Semaphore(MAX_PARALLEL_REPORTS)

    async def prices(self) -> list[Price]:
        """See `accounts.UsageRecords`."""
        query = sa.select(*prices.c).order_by(prices.c.model, prices.c.valid_from)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [Price(**row) for row in rows]

    async def put_price(self, price: Price) -> None:
        """See `accounts.UsageRecords`."""
        actor = current_actor()
        delete = sa.delete(prices).where(*_is_price(price.model, price.valid_from)).returning(*prices.c)

        def put(tx: Tx) -> None:
            bump(tx, "prices")
            row = tx.conn.execute(delete).mappings().one_or_none()
            record(tx, actor, change_of("price", price.model, None if row is None else Price(**row), price))
            tx.conn.execute(sa.insert(prices).values({name: getattr(price, name) for name in Price.__struct_fields__}))

        await self._database.write(put)

    async def drop_price(self, model: str, valid_from: int) -> bool:
        """See `accounts.UsageRecords`."""
        actor = current_actor()
        delete = sa.delete(prices).where(*_is_price(model, valid_from)).returning(*prices.c)

        def drop(tx: Tx) -> bool:
            lock(tx, "prices")
            row = tx.conn.execute(delete).mappings().one_or_none()
            if row is None:
                return False
            record(tx, actor, change_of("price", model, Price(**row), None))
            bump(tx, "prices")
            return True

        return await self._database.write(drop)

    async def record(self, job: Job) -> None:
        """See `accounts.UsageRecords`."""
        totals = msgspec.structs.replace(totals_of(job), jobs=0)
        stale = msgspec.structs.replace(job, status=STALE)
        await self._database.write(lambda tx: _add(tx, tx.now, stale, totals))

    async def latencies(self, query: LatencyQuery) -> list[LatencyRow]:
        """See `accounts.UsageRecords`."""
        return rows_of(await self._read(latencies_statement(query)))

    async def _read(self, statement: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        """Return the rows of a report, of which few run at the same time. Raises Overloaded."""
        try:
            async with asyncio.timeout(REPORT_WAIT_SECONDS):
                await self._report_slots.acquire()
        except TimeoutError:
            raise Overloaded("Too many usage reports run at the same time; try again later.") from None
        try:
            return await self._database.read(lambda conn, _: conn.execute(statement).mappings().all())
        finally:
            self._report_slots.release()

    async def report(self, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
        """See `accounts.UsageRecords`."""
        rows = await self._read(_report_statement(query))
        usage = [_row_of(row, query) for row in rows if query.by and row["jobs"] is not None]
        return usage, UsageTotals(**{name: rows[0][f"all_{name}"] for name in _TOTALS})


def count_ended(tx: Tx, job: Job, created_at: int) -> None:
    """Add a job that has just ended to the sums of its hour and day, which stay right, as it never changes again."""
    _add(tx, created_at, job, totals_of(job))
    count_latency(tx, job, created_at)


def _add(tx: Tx, time: int, job: Job, totals: UsageTotals) -> None:
    dimensions, amounts = _dimensions_of(job), msgspec.structs.astuple(totals)
    tx.add_to_sum(usage_hours, (time // HOUR_US * HOUR_US, *dimensions), amounts)
    tx.add_to_sum(usage_days, (time // DAY_US * DAY_US, *dimensions), amounts)


def _jobs_by_hour(*conditions: ColumnElement[bool]) -> sa.Select[Any]:
    """Return a query for the totals of the jobs that match, grouped by hour and all dimensions."""
    hour = (jobs.c.created_at // HOUR_US * HOUR_US).label("hour")
    dimensions = [jobs.c[name] for name in _DIMENSIONS]
    return sa.select(hour, *dimensions, *_totals_of_jobs()).where(*conditions).group_by(hour, *dimensions)


def _totals_of_jobs() -> list[ColumnElement[int]]:
    unpriced = sa.case((jobs.c.cost_nanodollars.is_(None) & _HAS_TOKENS, 1), else_=0)
    timed = sa.case((jobs.c.generation_us.is_not(None), 1), else_=0)
    return [
        sa.func.count().label("jobs"),
        _sum(unpriced).label("unpriced"),
        _sum(timed).label("timed"),
        *(_sum(jobs.c[name]).label(name) for name in _SUMMED),
    ]


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the sum of a column as an integer. PostgreSQL would return a decimal for a bigint column."""
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


def _report_statement(query: UsageQuery) -> sa.Select[Any]:
    """Return a query for a page of rows, each with the totals of all: one statement reads one snapshot."""
    groups = _groups(query).cte("groups")
    order = _row_order(query, groups)
    page = sa.select(*groups.c).order_by(*order).offset(query.offset).limit(query.limit).subquery("page")
    total = sa.select(*(_sum(groups.c[name]).label(f"all_{name}") for name in _TOTALS)).subquery("total")
    order = _row_order(query, page)
    columns: list[ColumnElement[Any]] = [*page.c, *total.c]
    return sa.select(*columns).select_from(total.outerjoin(page, sa.true())).order_by(*order)


def _row_order(query: UsageQuery, rows: sa.FromClause) -> list[ColumnElement[Any]]:
    by_cost = [rows.c.cost_nanodollars.desc(), rows.c.jobs.desc()] if query.by_cost else []
    return [*by_cost, *(rows.c[f"by_{name}"].nulls_first() for name in query.by)]


def _usage(query: UsageQuery) -> sa.Subquery:
    """Return the usage by hour or day of the jobs that have not ended, and of those that have, from their sums."""
    since, until = hours_of(query.since, query.until)
    is_recent = jobs.c.id >= _oldest_id(query.since)
    is_counted = _UNFINISHED & jobs.c.copy_of.is_(None)
    unfinished = _jobs_by_hour(is_counted, is_recent, *_conditions(query, jobs.c, jobs.c.created_at, since, until))
    parts = [unfinished]
    ranges = ranges_of(usage_hours.c.hour, usage_days.c.day, since, until, by_hour="hour" in query.by)
    for table, time, begin, end in ranges:
        columns = [time.label("hour"), *(table.c[name] for name in _COLUMNS if name != "hour")]
        parts.append(sa.select(*columns).where(*_conditions(query, table.c, time, begin, end)))
    return sa.union_all(*parts).subquery("usage")


def _oldest_id(since: int) -> str:
    """Return a lower bound for the ids of jobs created since then, so that an index limits the scan.

    Ids are UUIDs whose first 48 bits are milliseconds since 1970 (RFC 9562, version 7). A job's row may be written up
    to a day after its id was generated.
    """
    milliseconds = max(0, since - DAY_US) // 1000
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def _conditions(
    query: UsageQuery, columns: Any, time: ColumnElement[int], since: int, until: int | None
) -> list[ColumnElement[bool]]:
    conditions = [time >= since]
    if until is not None:
        conditions.append(time < until)
    if query.user_id is not None:
        conditions.append(columns.user_id == query.user_id)
    if query.model is not None:
        conditions.append(columns.model == query.model)
    if query.prompt is not None:
        conditions.append(columns.prompt == query.prompt)
    return conditions


def _groups(query: UsageQuery) -> sa.Select[Any]:
    """Return a query for the totals of all groups."""
    usage = _usage(query)
    dimensions = [_dimension(name, usage).label(f"by_{name}") for name in query.by]
    totals = (_sum(usage.c[name]).label(name) for name in _TOTALS)
    source = sa.outerjoin(usage, users, users.c.id == usage.c.user_id) if "user" in query.by else usage
    return sa.select(*dimensions, *totals).select_from(source).group_by(*dimensions)


def _dimension(name: Dimension, usage: sa.Subquery) -> ColumnElement[Any]:
    match name:
        case "user":
            return users.c.email
        case "token":
            return usage.c.token_id
        case "day":
            return usage.c.hour // DAY_US * DAY_US
        case _:
            return usage.c[name]


def _row_of(row: sa.RowMapping, query: UsageQuery) -> UsageRow:
    dimensions = {name: row[f"by_{name}"] for name in query.by}
    return UsageRow(dimensions=dimensions, totals=UsageTotals(**{name: row[name] for name in _TOTALS}))


def _is_price(model: str, valid_from: int) -> list[ColumnElement[bool]]:
    return [prices.c.model == model, prices.c.valid_from == valid_from]
