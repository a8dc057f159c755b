"""Figures of reviews, in SQL: sums by hour, which the transaction of each receipt adds to."""

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.reviews.figures import (
    DecisionDetails,
    FigureDimension,
    FigureQuery,
    FigureRow,
    FigureTotals,
    figures_of,
)
from signoff.core.reviews.receipt import VerdictReceipt
from signoff.core.times import DAY_US, HOUR_US
from signoff.stores.database import Database
from signoff.stores.receipts_schema import review_hours
from signoff.stores.transaction import Tx

_TOTALS = FigureTotals.__struct_fields__


def add_figures(tx: Tx, receipt: VerdictReceipt, details: DecisionDetails) -> None:
    """Add a receipt to the sums of its hour."""
    hour = receipt.at // HOUR_US * HOUR_US
    for reviewer, totals in figures_of(receipt, details).items():
        group = (hour, receipt.policy, receipt.target, reviewer, details.prompt, details.prompt_version)
        tx.add_to_sum(review_hours, group, msgspec.structs.astuple(totals))


async def read_figures(database: Database, query: FigureQuery) -> tuple[list[FigureRow], FigureTotals]:
    """See `records.Receipts.figures`."""
    statement = _statement(query)
    rows = await database.read(lambda conn, _: conn.execute(statement).mappings().all())
    figures = [_row_of(row, query) for row in rows if query.by and row["decisions"] is not None]
    return figures, FigureTotals(**{name: rows[0][f"all_{name}"] for name in _TOTALS})


def _statement(query: FigureQuery) -> sa.Select[Any]:
    """Return a query for a page of rows, each with the totals of all: one statement reads one snapshot."""
    dimensions = [_dimension(name).label(f"by_{name}") for name in query.by]
    sums = [_sum(review_hours.c[name]).label(name) for name in _TOTALS]
    groups = sa.select(*dimensions, *sums).where(*_conditions(query)).group_by(*dimensions).cte("groups")
    order = [groups.c[f"by_{name}"].nulls_first() for name in query.by]
    page = sa.select(*groups.c).order_by(*order).offset(query.offset).limit(query.limit).subquery("page")
    total = sa.select(*(_sum(groups.c[name]).label(f"all_{name}") for name in _TOTALS)).subquery("total")
    order = [page.c[f"by_{name}"].nulls_first() for name in query.by]
    columns: list[ColumnElement[Any]] = [*page.c, *total.c]
    return sa.select(*columns).select_from(total.outerjoin(page, sa.true())).order_by(*order)


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


def _dimension(name: FigureDimension) -> ColumnElement[Any]:
    return review_hours.c.hour // DAY_US * DAY_US if name == "day" else review_hours.c[name]


def _conditions(query: FigureQuery) -> list[ColumnElement[bool]]:
    conditions = [review_hours.c.hour >= query.since // HOUR_US * HOUR_US]
    if query.until is not None:
        conditions.append(review_hours.c.hour < -(-query.until // HOUR_US) * HOUR_US)
    names = [name for name in ("policy", "target", "reviewer", "prompt") if getattr(query, name) is not None]
    return [*conditions, *(review_hours.c[name] == getattr(query, name) for name in names)]


def _row_of(row: sa.RowMapping, query: FigureQuery) -> FigureRow:
    dimensions = {name: row[f"by_{name}"] for name in query.by}
    return FigureRow(dimensions=dimensions, totals=FigureTotals(**{name: row[name] for name in _TOTALS}))
