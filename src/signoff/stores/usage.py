"""Prices and sums of what was used, as SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import add
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.job import Job
from signoff.core.price import Price
from signoff.core.usage import DAY_US, HOUR_US, STALE, Dimension, UsageQuery, UsageRow, UsageTotals, totals_of
from signoff.errors import Overloaded
from signoff.stores.database import Database
from signoff.stores.schema import jobs, past_usage, prices, users
from signoff.stores.versions import bump, change
from signoff.stores.writer import Tx

_KEY = ("user_id", "token_id", "target", "model", "door", "status", "cache", "prompt", "prompt_version")
_SUMS = UsageTotals.__struct_fields__
_BY = ("hour", *_KEY)
_PAST = (*_BY, *_SUMS)
_ADDED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nanodollars",
    "queued_us",
    "ttft_us",
    "generation_us",
)
_USED_TOKENS = jobs.c.prompt_tokens + jobs.c.completion_tokens > 0
# A question may be about many rows: others who read have connections of their own left.
QUESTIONS_AT_ONCE = 2
TURN_SECONDS = 30.0


class SqlUsageRecords:
    """The ledger in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    async def prices(self) -> list[Price]:
        """See `store.UsageRecords`."""
        query = sa.select(*prices.c).order_by(prices.c.model, prices.c.valid_from)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [Price(**row) for row in rows]

    async def put_price(self, price: Price) -> None:
        """See `store.UsageRecords`."""

        def put(tx: Tx) -> None:
            bump(tx, "prices")
            tx.conn.execute(sa.delete(prices).where(*_is(price.model, price.valid_from)))
            tx.conn.execute(sa.insert(prices).values({name: getattr(price, name) for name in Price.__struct_fields__}))

        await self._database.write(put)

    async def drop_price(self, model: str, valid_from: int) -> bool:
        """See `store.UsageRecords`."""
        delete = sa.delete(prices).where(*_is(model, valid_from))
        return await self._database.write(lambda tx: change(tx, "prices", delete))

    async def record(self, job: Job) -> None:
        """See `store.UsageRecords`."""
        key = {name: getattr(job, name) for name in _KEY} | {"status": STALE}

        def keep(tx: Tx) -> None:
            sums = msgspec.structs.asdict(totals_of(job)) | {"jobs": 0}
            tx.conn.execute(sa.insert(past_usage).values({"hour": tx.now // HOUR_US * HOUR_US} | key | sums))

        await self._database.write(keep)

    async def report(self, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
        """See `store.UsageRecords`."""
        report = _report(query)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._asking.acquire()
        except TimeoutError:
            raise Overloaded("Too many ask what was used.") from None
        try:
            rows = await self._database.read(lambda conn, _: conn.execute(report).mappings().all())
        finally:
            self._asking.release()
        lines = [_line(row, query) for row in rows if query.by and row["jobs"] is not None]
        return lines, UsageTotals(**{name: rows[0][f"all_{name}"] for name in _SUMS})


def keep_sums(tx: Tx, job_ids: Sequence[str]) -> None:
    """Adds the jobs that are about to be forgotten to the sums of their hours."""
    new = tx.conn.execute(_by_hour(jobs.c.id.in_(job_ids))).all()
    same = [past_usage.c[name].in_({getattr(row, name) for row in new}) for name in ("hour", "token_id", "model")]
    old = tx.conn.execute(sa.delete(past_usage).where(*same).returning(*(past_usage.c[name] for name in _PAST))).all()
    sums = dict[tuple[Any, ...], tuple[int, ...]]()
    for row in (*old, *new):
        key, more = tuple(row[: len(_BY)]), row[len(_BY) :]
        sums[key] = tuple(map(add, sums[key], more)) if key in sums else tuple(more)
    tx.conn.execute(sa.insert(past_usage), [dict(zip(_PAST, key + sum_, strict=True)) for key, sum_ in sums.items()])


def _by_hour(*which: ColumnElement[bool]) -> sa.Select[Any]:
    """The jobs in sums of an hour and of all that they can be told apart by."""
    hour = (jobs.c.created_at // HOUR_US * HOUR_US).label("hour")
    key = [jobs.c[name] for name in _KEY]
    return sa.select(hour, *key, *_sums_of_jobs()).where(*which).group_by(hour, *key)


def _sums_of_jobs() -> list[ColumnElement[int]]:
    unpriced = sa.case((jobs.c.cost_nanodollars.is_(None) & _USED_TOKENS, 1), else_=0)
    timed = sa.case((jobs.c.generation_us.is_not(None), 1), else_=0)
    return [
        sa.func.count().label("jobs"),
        _whole(unpriced).label("unpriced"),
        _whole(timed).label("timed"),
        *(_whole(jobs.c[name]).label(name) for name in _ADDED),
    ]


def _whole(column: ColumnElement[Any]) -> ColumnElement[int]:
    """The sum as a whole number: PostgreSQL's of big ones would be decimal."""
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


def _report(question: UsageQuery) -> sa.Select[Any]:
    """A page of lines, each beside the sum of all; in one statement, which sees one moment."""
    used = _everything(question)
    lines = _lines(question, used).subquery("lines")
    total = sa.select(*(_whole(used.c[name]).label(f"all_{name}") for name in _SUMS)).subquery("total")
    in_order = [lines.c[f"by_{name}"] for name in question.by]
    return (
        sa.select(*lines.c, *total.c).select_from(total.outerjoin(lines, sa.true())).order_by(*_nulls_first(in_order))
    )


def _everything(question: UsageQuery) -> sa.CTE:
    """The sums by the hour of the jobs that are kept, and of those that were."""
    now = _by_hour(*_within(question, jobs.c.created_at, jobs.c), jobs.c.id >= _oldest_id(question.since))
    past = sa.select(*(past_usage.c[name] for name in _PAST))
    past = past.where(*_within(question, past_usage.c.hour, past_usage.c))
    return sa.union_all(now, past).cte("used")


def _oldest_id(since: int) -> str:
    """What the ids of jobs begin with that were written since then; most were made in the same second, all in a day.

    Ids are UUIDs whose first 48 bits are milliseconds since 1970 (RFC 9562, version 7), and the key of the rows.
    """
    milliseconds = max(0, since - DAY_US) // 1000
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def _within(question: UsageQuery, time: ColumnElement[int], columns: Any) -> list[ColumnElement[bool]]:
    found = [time >= question.since // HOUR_US * HOUR_US]
    if question.until is not None:
        found.append(time < -(-question.until // HOUR_US) * HOUR_US)
    if question.user_id is not None:
        found.append(columns.user_id == question.user_id)
    if question.model is not None:
        found.append(columns.model == question.model)
    return found


def _lines(question: UsageQuery, used: sa.CTE) -> sa.Select[Any]:
    dimensions = [_dimension(name, used).label(f"by_{name}") for name in question.by]
    sums = (_whole(used.c[name]).label(name) for name in _SUMS)
    source = sa.outerjoin(used, users, users.c.id == used.c.user_id) if "user" in question.by else used
    query = sa.select(*dimensions, *sums).select_from(source)
    return query.group_by(*dimensions).order_by(*_nulls_first(dimensions)).offset(question.offset).limit(question.limit)


def _nulls_first(columns: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [column.nulls_first() for column in columns]


def _dimension(name: Dimension, used: sa.CTE) -> ColumnElement[Any]:
    match name:
        case "user":
            return users.c.email
        case "token":
            return used.c.token_id
        case "day":
            return used.c.hour // DAY_US * DAY_US
        case _:
            return used.c[name]


def _line(row: sa.RowMapping, question: UsageQuery) -> UsageRow:
    of = {name: row[f"by_{name}"] for name in question.by}
    return UsageRow(dimensions=of, totals=UsageTotals(**{name: row[name] for name in _SUMS}))


def _is(model: str, valid_from: int) -> list[ColumnElement[bool]]:
    return [prices.c.model == model, prices.c.valid_from == valid_from]
