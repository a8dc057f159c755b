"""Pipeline runs, in SQL: their steps, which are jobs, and their calls of functions."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from signoff.core.job import FunctionCall, Job
from signoff.core.usage import UsageTotals
from signoff.errors import Stale
from signoff.stores.database import Database
from signoff.stores.job_pages import chunked
from signoff.stores.jobs import insert_job, with_times
from signoff.stores.schema import function_calls, jobs
from signoff.stores.transaction import Tx
from signoff.stores.transitions import EVERY_COLUMN, guards, job_of


class SqlRuns:
    """Steps and function calls in a SQL database; see `records.Runs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        """See `records.Runs`."""

        def add(tx: Tx) -> Job:
            _check_lease(tx, step.parent_id, run_lease)
            position = {"run": step.parent_id, "round": step.parent_round, "node": step.node}
            row = tx.conn.execute(_STEP_AT, position).one_or_none()
            if row is not None:
                return job_of(row)
            verb, seconds = ("hit", None) if step.is_terminal else ("submit", lease_seconds)
            job = insert_job(tx, with_times(step, tx.now, 0, seconds), verb, actor)
            tx.flush()  # later operations of this group must see the row
            return job

        try:
            return await self._database.write(add)
        except IntegrityError:  # another process inserted this step at the same time: now there is a row to return
            return await self._database.write(add)

    async def steps(self, run_id: str, run_round: int | None = None) -> list[Job]:
        """See `records.Runs`."""
        query = _STEPS if run_round is None else _STEPS.where(jobs.c.parent_round == run_round)
        rows = await self._database.read(lambda conn, _: conn.execute(query, {"run": run_id}).all())
        return [job_of(row) for row in rows]

    async def add_call(self, call: FunctionCall, *, run_lease: str) -> FunctionCall:
        """See `records.Runs`."""

        def add(tx: Tx) -> FunctionCall:
            _check_lease(tx, call.job_id, run_lease)
            position = {"run": call.job_id, "round": call.round, "node": call.node}
            row = tx.conn.execute(_CALL_AT, position).one_or_none()
            if row is not None:
                return _call_of(row)
            tx.add(function_calls, msgspec.structs.asdict(call))
            tx.flush()
            return call

        return await self._database.write(add)

    async def calls(self, run_id: str, run_round: int | None = None) -> list[FunctionCall]:
        """See `records.Runs`."""
        query = _CALLS if run_round is None else _CALLS.where(function_calls.c.round == run_round)
        rows = await self._database.read(lambda conn, _: conn.execute(query, {"run": run_id}).all())
        return [_call_of(row) for row in rows]

    async def size_bytes(self, run_id: str) -> int:
        """See `records.Runs`."""
        return await self._database.read(lambda conn, _: conn.execute(_SIZE, {"run": run_id}).scalar_one())

    async def costs(self, run_ids: Sequence[str]) -> dict[str, UsageTotals]:
        """See `records.Runs`."""

        def read(conn: Connection, _: object) -> dict[str, UsageTotals]:
            rows = [row for ids in chunked(run_ids) for row in conn.execute(_COSTS, {"runs": ids}).mappings()]
            return {row["run"]: UsageTotals(**{name: row[name] for name in _SUMMED}) for row in rows}

        return await self._database.read(read)

    async def insert_retry(self, run: Job, steps: Sequence[Job], calls: Sequence[FunctionCall], *, actor: str) -> Job:
        """See `records.Runs`."""

        def insert(tx: Tx) -> Job:
            for step in steps:
                verb = "succeed" if step.is_terminal else "submit"
                insert_job(tx, with_times(step, tx.now, 0, None), verb, actor)
            for call in calls:
                tx.add(function_calls, msgspec.structs.asdict(call))
            return insert_job(tx, with_times(run, tx.now, 0, None), "submit", actor)

        return await self._database.write(insert)

    async def stalled(self, limit: int) -> list[Job]:
        """See `records.Runs`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_STALLED, {"limit": limit}).all())
        return [job_of(row) for row in rows]


def _call_of(row: Row[Any]) -> FunctionCall:
    return FunctionCall(**dict(zip(_NAMES, row, strict=True)))


def _check_lease(tx: Tx, run_id: str | None, lease: str) -> None:
    """Lock the run for this transaction. Raises Stale unless it has the status `bot` and this lease."""
    if tx.conn.execute(_LOCK_LEASED, {"run": run_id, "lease": lease}).one_or_none() is None:
        raise Stale(f"The run {run_id} has ended, or another worker holds its lease.", job_id=run_id)


_NAMES = tuple(column.name for column in function_calls.c)
_RUN = sa.bindparam("run", type_=sa.Text)
_ROUND = sa.bindparam("round", type_=sa.Integer)
_NODE = sa.bindparam("node", type_=sa.Text)
_LOCK_LEASED = (
    sa.select(jobs.c.id)
    .where(jobs.c.id == _RUN, jobs.c.status == "bot", jobs.c.lease == sa.bindparam("lease", type_=sa.Text))
    .with_for_update()
)
_STEPS = sa.select(*EVERY_COLUMN).where(jobs.c.parent_id == _RUN).order_by(jobs.c.id)
_STEP_AT = _STEPS.where(jobs.c.parent_round == _ROUND, jobs.c.node == _NODE)
_CALLS = (
    sa.select(*function_calls.c)
    .where(function_calls.c.job_id == _RUN)
    .order_by(function_calls.c.began_at, function_calls.c.node)
)
_CALL_AT = _CALLS.where(function_calls.c.round == _ROUND, function_calls.c.node == _NODE)
_STEP = jobs.alias("step")
_IS_ACTIVE = sa.exists().where(
    _STEP.c.parent_id == jobs.c.id,
    _STEP.c.parent_round == jobs.c.round,
    _STEP.c.status.in_([sa.literal_column("'bot'"), sa.literal_column("'human'")]),
)
_STALLED = sa.select(*EVERY_COLUMN).where(*guards("wake"), ~_IS_ACTIVE).limit(sa.bindparam("limit", type_=sa.Integer))


def _size_statement() -> sa.Select[Any]:
    """Return a query that goes up from a run to the outermost one, then down to all calls, and sums their bytes."""
    up = sa.select(jobs.c.id, jobs.c.parent_id).where(jobs.c.id == _RUN).cte("up", recursive=True)
    up = up.union_all(sa.select(jobs.c.id, jobs.c.parent_id).where(jobs.c.id == up.c.parent_id))
    outermost = sa.select(up.c.id).where(up.c.parent_id.is_(None)).scalar_subquery()
    tree = sa.select(jobs.c.id, jobs.c.round, sa.literal(0).label("size")).where(jobs.c.id == outermost)
    tree = tree.cte("tree", recursive=True)
    size = _bytes(jobs.c.body) + _bytes(jobs.c.metadata) + _bytes(jobs.c.response)
    is_step = (jobs.c.parent_id == tree.c.id) & (jobs.c.parent_round == tree.c.round)
    tree = tree.union_all(sa.select(jobs.c.id, jobs.c.round, size).where(is_step))
    of_calls = sa.select(sa.func.sum(_bytes(function_calls.c.arguments) + _bytes(function_calls.c.output))).join_from(
        tree, function_calls, (function_calls.c.job_id == tree.c.id) & (function_calls.c.round == tree.c.round)
    )
    of_steps = sa.select(sa.func.sum(tree.c.size)).scalar_subquery()
    total = sa.func.coalesce(of_steps, 0) + sa.func.coalesce(of_calls.scalar_subquery(), 0)
    return sa.select(sa.cast(total, sa.BigInteger))


def _bytes(column: sa.Column[bytes]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.length(column), 0)


def _costs_statement() -> sa.Select[Any]:
    """Return a query for the sums of all steps below each run."""
    tree = sa.select(jobs.c.parent_id.label("run"), jobs.c.id).where(
        jobs.c.parent_id.in_(sa.bindparam("runs", type_=sa.Text, expanding=True))
    )
    tree = tree.cte("tree", recursive=True)
    tree = tree.union_all(sa.select(tree.c.run, jobs.c.id).where(jobs.c.parent_id == tree.c.id))
    has_tokens = jobs.c.prompt_tokens + jobs.c.completion_tokens > 0
    unpriced = sa.case((jobs.c.cost_nanodollars.is_(None) & has_tokens, 1), else_=0)
    sums = {"unpriced": unpriced, **{name: jobs.c[name] for name in _SUMMED[2:]}}
    columns = [
        sa.cast(sa.func.coalesce(sa.func.sum(value), 0), sa.BigInteger).label(name) for name, value in sums.items()
    ]
    query = sa.select(tree.c.run, sa.func.count().label("jobs"), *columns)
    return query.join_from(tree, jobs, jobs.c.id == tree.c.id).group_by(tree.c.run)


_SUMMED = ("jobs", "unpriced", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanodollars")
_SIZE, _COSTS = _size_statement(), _costs_statement()
