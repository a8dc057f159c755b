"""Contract tests of stores: prices and usage reports, whose totals do not change when jobs are purged."""

import itertools
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.latency import Histogram, LatencyQuery, histogram_of
from signoff.core.price import Price
from signoff.core.times import DAY_US, HOUR_US
from signoff.core.usage import Dimension, UsageQuery, UsageTotals
from signoff.stores.usage import _report_statement
from simulation.usage import added, plus
from support.stores import AStore, a_job, opened, rows, together

pytestmark = pytest.mark.anyio

PRICE = Price(model="gpt", valid_from=10, input=150_000, output=600_000, cached_input=75_000, request=7)
COUNTS = st.integers(0, 1000)
JOB_FIELDS = st.fixed_dictionaries(
    {
        "user_id": st.integers(1, 3),
        "token_id": st.integers(1, 3),
        "target": st.sampled_from(["a", "b"]),
        "model": st.sampled_from(["a", "a*"]),
        "door": st.sampled_from(["openai", "native"]),
        "cache": st.sampled_from([None, "hit", "miss"]),
        "prompt": st.sampled_from([None, "greet"]),
        "prompt_version": st.sampled_from([None, 1, 2]),
        "status": st.sampled_from(["success", "fail"]),
        "lane": st.just("now"),
        "prompt_tokens": COUNTS,
        "cached_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "cost_nanodollars": st.none() | st.integers(0, 10**15),
        "queued_us": st.none() | COUNTS,
        "ttft_us": st.none() | COUNTS,
        "generation_us": st.none() | COUNTS,
    }
)
DIMENSIONS = st.lists(st.sampled_from([name for name in get_args(Dimension) if name != "user"]), unique=True)


async def ended(store: AStore, **more: object) -> Job:
    """Insert a job that has ended and return it."""
    job = a_job(**({"status": "success", "lane": "now"} | more))
    return await store.jobs.insert_ended(job, actor="ann", verbs=["submit"])


async def test_prices_are_stored_by_model_and_time(store: AStore, other: AStore) -> None:
    later = msgspec.structs.replace(PRICE, valid_from=20, cached_input=None)
    for price in (later, PRICE, msgspec.structs.replace(PRICE, model="a")):
        await store.usage.put_price(price)
    dearer = msgspec.structs.replace(PRICE, input=2)
    await store.usage.put_price(dearer)

    assert await other.usage.prices() == [msgspec.structs.replace(PRICE, model="a"), dearer, later]
    assert await other.usage.drop_price("gpt", 20)
    assert not await other.usage.drop_price("gpt", 20)
    assert [price.valid_from for price in await store.usage.prices()] == [10, 10]


async def test_an_empty_store_reports_no_usage(store: AStore) -> None:
    assert await store.usage.report(UsageQuery(by=("model",))) == ([], UsageTotals())
    assert await store.usage.report(UsageQuery()) == ([], UsageTotals())


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JOB_FIELDS, min_size=1, max_size=20), DIMENSIONS, st.integers(0, 20))
async def test_totals_equal_the_sums_of_all_jobs_for_every_grouping_and_after_a_purge(
    store: AStore, rows: list[dict[str, object]], by: list[Dimension], forgotten: int
) -> None:
    before = (await store.usage.report(UsageQuery()))[1]
    jobs = [await ended(store, **row) for row in rows]
    expected = plus(before, added(jobs))
    await store.jobs.purge(-60, forgotten)

    usage_rows, total = await store.usage.report(UsageQuery(by=tuple(by)))

    assert total == expected
    if by:
        assert plus(*(usage_row.totals for usage_row in usage_rows)) == expected
        assert len({tuple(usage_row.dimensions.items()) for usage_row in usage_rows}) == len(usage_rows)
    [mine, theirs] = [await store.usage.report(UsageQuery(user_id=user)) for user in (1, 2)]
    assert mine[1].jobs + theirs[1].jobs <= expected.jobs


async def test_a_usage_row_has_its_dimensions_and_totals(store: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user")
    job = await ended(store, user_id=ann.id, token_id=7, prompt_tokens=3, completion_tokens=2, generation_us=5)
    await ended(store, user_id=0)

    by: tuple[Dimension, ...] = ("user", "token", "hour", "day", "model", "target", "door", "status")
    without_user, usage_row = (await store.usage.report(UsageQuery(by=by)))[0]

    hour, day = job.created_at // HOUR_US * HOUR_US, job.created_at // DAY_US * DAY_US
    assert list(usage_row.dimensions.values()) == ["ann@example.com", 7, hour, day, "echo", "echo", "test", "success"]
    assert usage_row.totals == UsageTotals(
        jobs=1, unpriced=1, timed=1, prompt_tokens=3, completion_tokens=2, generation_us=5
    )
    assert without_user.dimensions["user"] is None


async def test_usage_rows_come_in_pages_and_the_total_covers_all_pages(store: AStore) -> None:
    for token in (3, 1, 2, 1):
        await ended(store, token_id=token)

    pages = [await store.usage.report(UsageQuery(by=("token",), offset=offset, limit=2)) for offset in (0, 2, 4)]

    assert [[usage_row.dimensions["token"] for usage_row in usage_rows] for usage_rows, _ in pages] == [[1, 2], [3], []]
    assert {total.jobs for _, total in pages} == {4}


async def test_a_report_is_filtered_by_hours_user_model_and_prompt(store: AStore) -> None:
    job = await ended(store, user_id=1, model="a")
    await ended(store, user_id=2, model="b", prompt="greet", prompt_version=1)
    hour = job.created_at // HOUR_US * HOUR_US

    async def count(**more: object) -> int:
        return (await store.usage.report(UsageQuery(**more)))[1].jobs

    for is_kept in (True, False):
        assert await count() == 2
        assert await count(user_id=1) == await count(model="b") == 1
        assert await count(user_id=1, model="b") == await count(prompt="other") == 0
        assert await count(prompt="greet") == 1
        assert await count(since=hour + HOUR_US * 2) == await count(until=hour) == 0
        assert await count(since=hour + 5, until=hour + 7) == await count(since=hour, until=hour + HOUR_US) == 2
        if is_kept:
            assert await store.jobs.purge(-60, 10) == 2


async def test_latencies_equal_the_rows_for_every_grouping_and_after_a_purge(store: AStore, other: AStore) -> None:
    latencies = [
        (user, model, 40 * number**3, 900 * number) for number in range(30) for user, model in ((1, "a"), (2, "b"))
    ]
    for each, (user, model, first, rest) in zip(itertools.cycle((store, other)), latencies, strict=False):
        await ended(each, user_id=user, model=model, ttft_us=first, generation_us=rest)
    await ended(store, model="a")  # its request went to no model
    hour = (await store.jobs.list(JobFilter(limit=1)))[0].created_at // HOUR_US * HOUR_US

    def expected(*users: int) -> tuple[Histogram, Histogram]:
        chosen = [(first, rest) for user, _, first, rest in latencies if user in users]
        return histogram_of(first + rest for first, rest in chosen), histogram_of(first for first, _ in chosen)

    async def rows_of(**query: Any) -> dict[Any, tuple[Histogram, Histogram]]:
        return {row.group: (row.whole, row.first) for row in await store.usage.latencies(LatencyQuery(**query))}

    for is_kept in (True, False):
        assert await rows_of() == {None: expected(1, 2)}
        assert await rows_of(by="model") == {"a": expected(1), "b": expected(2)}
        assert await rows_of(by="hour", user_id=2) == {hour: expected(2)}
        assert await rows_of(by="day", since=hour, until=hour + HOUR_US) == {hour // DAY_US * DAY_US: expected(1, 2)}
        assert await rows_of(until=hour) == {}
        while is_kept and await store.jobs.purge(-60, 100):
            pass


async def test_a_job_counts_at_the_time_of_its_insert_and_not_of_its_id(store: AStore) -> None:
    job = await ended(store)
    id_milliseconds = job.created_at // 1000 - 60 * 60 * 1000
    await ended(store, id=f"{id_milliseconds >> 16:08x}-{id_milliseconds & 0xFFFF:04x}-7000-8000-000000000000")

    assert (await store.usage.report(UsageQuery(since=job.created_at)))[1].jobs == 2


async def test_a_report_with_a_start_time_does_not_scan_all_jobs(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.db") as store:
        for more in ({}, {"user_id": 1}, {"model": "a"}):
            report = _report_statement(UsageQuery(since=40 * DAY_US, by=("user", "day"), **more))
            statement = report.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
            plan = await rows(store, sa.text(f"EXPLAIN QUERY PLAN {statement}"))
            details = [step["detail"] for step in plan]
            tables = ("jobs", "calls", "usage_hours", "usage_days")
            assert [detail for detail in details for table in tables if f"SCAN {table}" in detail] == []
            assert [detail for detail in details if "SEARCH jobs USING INDEX" in detail] != []
            assert [detail for detail in details if "SEARCH usage_days USING INDEX" in detail] != []


@pytest.mark.law
async def test_two_processes_that_purge_at_once_count_every_job_once(store: AStore, other: AStore) -> None:
    for _ in range(20):
        await together(ended(store, prompt_tokens=1) for _ in range(10))
        await together(each.jobs.purge(-60, 5) for each in (store, other, store, other))

    assert (await store.usage.report(UsageQuery()))[1].jobs == 200


async def test_a_wasted_attempt_counts_without_a_job(store: AStore) -> None:
    job = a_job(prompt_tokens=3, completion_tokens=2, cost_nanodollars=7, generation_us=5)
    await store.usage.record(job)

    [usage_row], total = await store.usage.report(UsageQuery(by=("status",)))

    assert usage_row.dimensions == {"status": "stale"}
    assert (
        usage_row.totals
        == total
        == UsageTotals(timed=1, prompt_tokens=3, completion_tokens=2, cost_nanodollars=7, generation_us=5)
    )


async def test_totals_larger_than_32_bits_are_exact(store: AStore) -> None:
    most = 2**31 - 1
    for _ in range(3):
        await ended(store, prompt_tokens=most, completion_tokens=most, cost_nanodollars=10**15, generation_us=2**50)

    total = (await store.usage.report(UsageQuery()))[1]
    assert (total.prompt_tokens, total.cost_nanodollars) == (3 * most, 3 * 10**15)
