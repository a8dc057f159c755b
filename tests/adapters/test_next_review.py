"""The next held answer is read in the order of an index, on each database, however many answers are held."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import dialects
from sqlalchemy.sql.dml import ReturningUpdate

from signoff.core.reviews.queues import NextReview
from signoff.stores.next_review import CANDIDATES, open_first_statement, open_next, open_unlocked_statement
from signoff.stores.schema import jobs
from signoff.stores.sql import SqlStore
from support.stores import held, opened, rows

pytestmark = pytest.mark.anyio
INDEXES = {"jobs_by_assignee", "jobs_free_to_review", "jobs_opened_to_review"}
QUEUES = ("", "a", "b")
HELD, OPENED = 3000, 100
# PostgreSQL keeps a plan after five executions, https://www.postgresql.org/docs/current/sql-prepare.html
PLANNED = 8


@pytest.mark.parametrize("skipped", [0, 2])
async def test_sqlite_reads_the_next_answer_from_the_end_of_an_index(tmp_path: Path, skipped: int) -> None:
    statement = str(open_first_statement(len(QUEUES), skipped).compile(dialect=dialects.sqlite.dialect()))
    statement = statement.partition(" RETURNING ")[0].replace("?", "NULL")
    async with opened(f"sqlite:///{tmp_path}/store.db") as store:
        steps = await rows(store, sa.text(f"EXPLAIN QUERY PLAN {statement}"))
    reads = [
        step["detail"] for step in steps if re.search(r"\bjobs\b", step["detail"]) and " (id=?)" not in step["detail"]
    ]
    assert len(reads) == 1 + 2 * len(QUEUES)
    assert {re.search(r"SEARCH jobs USING (?:COVERING )?INDEX (\w+)", detail)[1] for detail in reads} == INDEXES
    # Only the first answers of the ranges are sorted, never a range.
    ranges = {step["id"] for step in steps if step["detail"].startswith(("CO-ROUTINE", "MATERIALIZE"))}
    ranges -= {step["parent"] for step in steps if step["detail"].startswith("COMPOUND QUERY")}
    assert not [step for step in steps if "TEMP B-TREE" in step["detail"] and step["parent"] in ranges]


async def test_postgresql_reads_as_many_rows_as_candidates_for_the_next_answer(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        assert isinstance(store, SqlStore)
        await fill(store)
        change = {"to": "human", "reviewer": "ann", "new_review_lease": "ann", "new_review_lease_until": 2**60}
        parameters = {"now": 1, "me": "ann", "not_user": -1, "queues": list(QUEUES), "skip": [], **change}
        plan = await explained(store, open_unlocked_statement(CANDIDATES[0]), parameters)
    scans = [line for line in plan if "Scan" in line and re.search(r" on jobs\b", line)]
    used = {match[1] for line in scans if (match := re.search(r"using (\w+)", line))}
    assert used >= INDEXES
    assert used - INDEXES <= {"jobs_pkey", "jobs_by_status"}  # of the candidates, by their ids
    assert not [line for line in scans if "Seq Scan" in line or "Bitmap" in line]
    counts = [int(number) for line in plan for number in re.findall(r"actual rows=(\d+)", line)]
    assert counts
    assert max(counts) <= CANDIDATES[0] * len(QUEUES)


async def test_an_opened_answer_is_skipped_without_a_look_at_the_others(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        assert isinstance(store, SqlStore)
        await fill(store)
        query = NextReview(reviewer="ann", queues=QUEUES, skip=("job-1", "job-2"))
        taken = [await store.reviews.open_next(query, actor="user:ann", lease_seconds=60) for _ in range(3)]
    assert len({job.id for job in taken if job is not None} - set(query.skip)) == len(taken)


async def test_postgresql_keeps_no_plan_that_reads_a_table_from_its_start(postgres_url: str) -> None:
    query, lease = NextReview(reviewer="ann", queues=QUEUES), {"actor": "user:ann", "lease_seconds": 60.0}
    scans = sa.text("SELECT sum(seq_scan) FROM pg_stat_xact_user_tables WHERE relname IN ('jobs', 'votes')")

    def open_one(tx: Any) -> int:
        assert open_next(tx, query, "user:ann", 60) is not None
        return tx.conn.execute(scans).scalar_one()

    async with opened(postgres_url) as store:
        assert isinstance(store, SqlStore)
        for _ in range(PLANNED):  # while there is nothing to read
            assert await store.reviews.open_next(query, **lease) is None
        await fill(store, is_analyzed=False)
        assert await store._database.write_lease(open_one) == 0


async def test_postgresql_opens_an_answer_beside_a_write_that_is_blocked(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        assert isinstance(store, SqlStore)
        job = await held(store)
        await store._database.write_alone(lambda tx: value_of(tx, "SELECT pg_advisory_lock(7)"))
        blocked = asyncio.ensure_future(
            store._database.write(lambda tx: value_of(tx, "SELECT pg_advisory_xact_lock(7)"))
        )
        query = NextReview(reviewer="ann", queues=QUEUES)
        taken = await store.reviews.open_next(query, actor="user:ann", lease_seconds=60)
        assert taken is not None
        assert (taken.id, blocked.done()) == (job.id, False)
        await store._database.write_alone(lambda tx: value_of(tx, "SELECT pg_advisory_unlock(7)"))
        await blocked


async def test_postgresql_waits_for_the_disk_for_all_but_leases(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        assert isinstance(store, SqlStore)
        database, query = store._database, "SHOW synchronous_commit"
        assert await database.write_lease(lambda tx: value_of(tx, query)) == "off"
        for write in (database.write, database.write_alone):
            assert await write(lambda tx: value_of(tx, query)) == "on"


def value_of(tx: Any, query: str) -> Any:
    """Return the one value of a query."""
    return tx.conn.execute(sa.text(query)).scalar_one()


async def fill(store: SqlStore, *, is_analyzed: bool = True) -> None:
    """Insert held answers in all queues; some are open."""
    first = await held(store)
    columns = [column.name for column in jobs.c if column.name not in {"id", "review_queue"}]
    queue = "CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN 'a' ELSE 'b' END"
    copy = (
        f"INSERT INTO jobs (id, review_queue, {', '.join(columns)}) "
        f"SELECT 'job-' || n, {queue}, {', '.join(columns)} FROM jobs, generate_series(1, {HELD}) AS n WHERE id = :id"
    )
    lease = f"UPDATE jobs SET review_lease = 'eve', review_lease_until = {2**60} WHERE id IN "
    lease += f"(SELECT 'job-' || n FROM generate_series(1, {OPENED}) AS n)"

    def write(tx: Any) -> None:
        tx.conn.execute(sa.text(copy), {"id": first.id})
        tx.conn.execute(sa.text(lease))
        if is_analyzed:
            tx.conn.execute(sa.text("ANALYZE jobs"))

    await store._database.write(write)


async def explained(store: SqlStore, statement: ReturningUpdate[Any], parameters: dict[str, Any]) -> list[str]:
    """Return the lines of the plan with which PostgreSQL has executed a statement."""

    def explain(tx: Any) -> list[str]:
        compiled = statement.compile(dialect=tx.conn.dialect)
        values = tuple({**compiled.params, **parameters}[name] for name in compiled.positiontup)
        text = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {compiled}"
        return list(tx.conn.exec_driver_sql(text, values).scalars())

    return await store._database.write(explain)
