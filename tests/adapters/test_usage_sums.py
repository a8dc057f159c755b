"""Sums of usage by hour: equal to the rows of the jobs that have ended, in whatever way they ended."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from signoff.core.filters import JobFilter
from signoff.core.times import DAY_US, HOUR_US
from signoff.core.usage import Dimension, UsageQuery, UsageTotals, totals_of
from signoff.stores.latency_schema import LATENCY_COLUMNS, latency_days, latency_hours
from signoff.stores.schema import usage_days, usage_hours
from signoff.stores.sql import SqlStore
from signoff.stores.transaction import Tx
from signoff.stores.usage import _DIMENSIONS, count_ended
from support.stores import a_call, a_job, a_step, leased, logged, opened, rows, together

pytestmark = pytest.mark.anyio

USED = {"prompt_tokens": 3, "completion_tokens": 2, "cost_nanodollars": 7, "generation_us": 5}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    """Yield an empty store."""
    async with opened(url) as store:
        yield store


async def sums_by_group(store: SqlStore, table: sa.Table = usage_hours) -> dict[tuple[object, ...], tuple[int, ...]]:
    """Return the totals of a table of sums, by time and dimensions."""
    columns = [column for column in table.c if column.name != "key"]
    totals = len(UsageTotals.__struct_fields__)
    sums = dict[tuple[object, ...], tuple[int, ...]]()
    for row in await rows(store, sa.select(*columns)):
        values = tuple(row.values())
        group, amounts = values[:-totals], values[-totals:]
        sums[group] = tuple(map(sum, zip(sums.get(group, (0,) * totals), amounts, strict=True)))
    return sums


async def totals_of_rows(store: SqlStore, period_us: int = HOUR_US) -> dict[tuple[object, ...], tuple[int, ...]]:
    """Return the totals of all jobs that have ended, by hour or another period, and by dimensions."""
    sums = dict[tuple[object, ...], tuple[int, ...]]()
    for job in await store.jobs.list(JobFilter(limit=10_000)):
        if job.is_terminal:
            group = (job.created_at // period_us * period_us, *(getattr(job, name) for name in _DIMENSIONS))
            amounts = msgspec.structs.astuple(totals_of(job))
            sums[group] = tuple(map(sum, zip(sums.get(group, (0,) * len(amounts)), amounts, strict=True)))
    return sums


async def test_the_sums_equal_the_rows_of_the_jobs_that_have_ended(store: SqlStore, url: str) -> None:
    jobs = store.jobs
    # given calls that have ended, in parallel, through two processes
    async with opened(url) as other:
        for each in (store, other):
            commits = [
                await each.jobs.log_call(a_call(**USED, model=model), actor="a", verbs=["submit", "claim", "succeed"])
                for model in ["a", "b"] * 20
            ]
            await together(commits)
    # and jobs that succeed, fail, are cancelled, are retried, and are still held
    for verb in ("succeed", "fail", "cancel", "retry", "hold"):
        job = await leased(store)
        await jobs.transition(job.id, a_step(verb, changes=dict(USED)))
    # and a run whose failure cancels its step
    run = await leased(store, pipeline_id=1)
    step = a_job(parent_id=run.id, node="0", lease="step", **USED)
    await store.runs.add_step(step, actor="w", run_lease="mine", lease_seconds=60)
    await jobs.transition(run.id, a_step("fail", changes={}))
    # and a hit
    await jobs.insert(a_job(status="success", cache="hit"), actor="ann", verb="hit")
    # then each is counted once
    sums = await sums_by_group(store)
    assert sums == await totals_of_rows(store)
    days = await sums_by_group(store, usage_days)
    assert days == await totals_of_rows(store, DAY_US)
    assert sum(amounts[0] for amounts in sums.values()) == 80 + 3 + 2 + 1
    # and so is its latency, in the histograms of hours and of days
    for table in (latency_hours, latency_days):
        numbers = [row[name] for row in await rows(store, sa.select(table)) for name in LATENCY_COLUMNS]
        assert sum(numbers) == 2 * sum(amounts[2] for amounts in sums.values())
    # and a report has those that have not ended too
    assert (await store.usage.report(UsageQuery()))[1].jobs == 80 + 3 + 2 + 1 + 2
    # and deleting the jobs changes no sum
    while await jobs.purge(-60, 10):
        pass
    assert await sums_by_group(store) == sums
    assert await sums_by_group(store, usage_days) == days


@pytest.mark.parametrize("spacing", [23, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("by", [(), ("day",), ("hour",), ("hour", "day")])
async def test_a_report_of_any_period_has_the_hours_of_that_period(
    store: SqlStore, by: tuple[Dimension, ...], spacing: int
) -> None:
    # given one job in every fifth hour of four days
    first = 19_000 * 24
    hours = range(first, first + 4 * 24, 5)
    job = a_call()

    def count_all(tx: Tx) -> None:
        for hour in hours:
            count_ended(tx, job, hour * HOUR_US + 7)

    await store._database.write(count_all)
    # then a report has the jobs of its period, wherever in a day that begins and ends
    edges = [*range(first - 10, first + 4 * 24 + 20, spacing), first, first + 24, first + 48]
    for since, until in itertools.product(edges, [None, *edges]):
        query = UsageQuery(by=by, since=since * HOUR_US, until=None if until is None else until * HOUR_US)
        usage, total = await store.usage.report(query)
        expected = [hour for hour in hours if since <= hour and (until is None or hour < until)]
        assert total.jobs == len(expected), (since - first, until)
        assert {tuple(row.dimensions.values()) for row in usage} == {
            tuple(hour * HOUR_US if name == "hour" else hour // 24 * DAY_US for name in by) for hour in expected if by
        }


async def test_a_transition_that_is_refused_counts_nothing(store: SqlStore) -> None:
    job = await leased(store)
    await store.jobs.transition(job.id, a_step("succeed"))
    sums = await sums_by_group(store)
    for verb in ("succeed", "fail", "cancel"):
        with pytest.raises(Exception, match="is not possible now"):
            await store.jobs.transition(job.id, a_step(verb))
    assert await sums_by_group(store) == sums


async def test_each_hour_and_model_has_one_row(store: SqlStore) -> None:
    for model in ["a", "b"] * 4:
        await logged(store, a_call(model=model))
    stored = await rows(store, sa.select(usage_hours.c.hour, usage_hours.c.model))
    assert len(stored) == len({(row["hour"], row["model"]) for row in stored})
