"""Plans of the queries behind list pages and metrics: none reads a whole table of jobs, calls or events."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from signoff.core.batch import BatchFilter, FileFilter
from signoff.core.filters import JobFilter
from signoff.core.latency import LatencyQuery
from signoff.core.reviews.figures import FigureQuery
from signoff.core.reviews.queues import ReviewFilter, ReviewOrder
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery
from signoff.stores import deliveries, queue_depths
from signoff.stores.batches import _page_statement as batches_statement
from signoff.stores.files import _page_statement as files_statement
from signoff.stores.job_pages import page_statement
from signoff.stores.latencies import latencies_statement
from signoff.stores.limits import refusals_statement
from signoff.stores.review_figures import _statement as figures_statement
from signoff.stores.reviews import _page_statement as held_statement
from signoff.stores.sql import SqlStore
from signoff.stores.usage import _report_statement
from support.stores import AStore

pytestmark = pytest.mark.anyio
SINCE = 40 * DAY_US
SCANNED = re.compile(
    r"(?:SCAN|Seq Scan on) (jobs|calls|batches|files|events|deliveries|(?:usage|latency)_(?:hours|days)"
    r"|(?:review|refusal)_hours)\b"
    r"(?! USING (?:COVERING )?INDEX sqlite_autoindex)"  # a walk by id, which the limit ends
)
# Lists of the desk: in each order, from the first answer on and after one, with and without an age.
DESK: dict[str, Any] = {
    f"desk, {order} {'after one' if after else 'first'} {age}": held_statement(
        ReviewFilter(queues=("",), order=order, after=after, min_age_seconds=age, target="echo"), 10**15
    )
    for order in get_args(ReviewOrder)
    for after in (None, (1, "x"))
    for age in (None, 60.0)
}
# Each walk of the pages begins at the newest job, or after one; 250 is the length of its steps.
QUERIES: dict[str, Any] = {
    "jobs": page_statement(JobFilter(limit=50, newest_first=True, with_steps=False)),
    "jobs, older": page_statement(JobFilter(limit=250, newest_first=True, after_id="01", with_steps=False)),
    "jobs, by status": page_statement(JobFilter(status="fail", limit=250, newest_first=True, after_id="01")),
    "jobs, of a user": page_statement(JobFilter(user_id=1, limit=250, newest_first=True)),
    "jobs, of a user by status": page_statement(JobFilter(user_id=1, status="success", limit=250, newest_first=True)),
    "policies and models": page_statement(JobFilter(limit=250, newest_first=True)),
    "files": files_statement(FileFilter(user_id=1, limit=100), 10**15),
    "files, after one": files_statement(
        FileFilter(user_id=1, limit=100, after_id="file-1", newest_first=False), 10**15
    ),
    "usage": _report_statement(UsageQuery(by=("prompt", "prompt_version"), since=SINCE, until=2 * SINCE, by_cost=True)),
    "people": _report_statement(UsageQuery(by=("token",), since=SINCE, by_cost=True)),
    "quality": figures_statement(FigureQuery(by=("prompt", "prompt_version"), since=SINCE)),
    "desk, by the time of the hold": held_statement(
        ReviewFilter(queues=("", "law"), order="newest", after=(1, "x")), 0
    ),
    **DESK,
    "batches of all": batches_statement(BatchFilter(user_id=None, api="openai", after_id="batch_1")),
    "latencies": latencies_statement(LatencyQuery(by="model", since=SINCE, until=2 * SINCE)),
    "limits": refusals_statement(SINCE, None, 50),
    "metrics, oldest job in the queue": queue_depths._OLDEST.params(of_priority=5),
    "metrics, jobs in the queue": queue_depths._NUMBERS.params(now=1, limit=50),
    "metrics, deliveries": deliveries._DEPTH.params(kind="webhook", limit=50),
}


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_no_list_page_reads_a_whole_table(store: AStore, url: str) -> None:
    assert isinstance(store, SqlStore)
    is_sqlite = url.startswith("sqlite")
    dialect, explain = (sqlite.dialect(), "EXPLAIN QUERY PLAN") if is_sqlite else (postgresql.dialect(), "EXPLAIN")

    def plan(conn: sa.Connection, statement: str) -> list[str]:
        if not is_sqlite:  # the planner prefers a scan of a small table; without it, a scan means that no index serves
            conn.exec_driver_sql("SET enable_seqscan = off")
        return [str(row[-1]) for row in conn.exec_driver_sql(f"{explain} {statement}").all()]

    scans = dict[str, list[str]]()
    for name, query in QUERIES.items():
        statement = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        details = await store._database.read(lambda conn, _, statement=statement: plan(conn, statement))
        assert details
        if scanned := [detail for detail in details if SCANNED.search(detail)]:
            scans[name] = scanned
    assert scans == {}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_no_list_of_the_desk_sorts_all_that_is_held(store: AStore) -> None:
    """The page of each range, which a limit ends, is sorted; what it is read from is in the order of an index."""
    assert isinstance(store, SqlStore)
    sorts, indexes = dict[str, list[str]](), set[str]()
    for name, query in DESK.items():
        statement = str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
        plan = await store._database.read(
            lambda conn, _, statement=statement: conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
        )
        details = [str(row[-1]) for row in plan]
        indexes |= {detail.split()[4] for detail in details if detail.startswith("SEARCH jobs")}
        sorted_ranges = [row for row, after in pairwise(details) if row.startswith("SEARCH") and "TEMP B-TREE" in after]
        if sorted_ranges:
            sorts[name] = details
    assert sorts == {}
    assert indexes == {"jobs_by_review_queue", "jobs_by_hold"}
