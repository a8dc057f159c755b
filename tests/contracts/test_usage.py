"""What every store keeps of prices and usage: the sums are those of the rows, whichever of them are kept."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from signoff.core.job import Job
from signoff.core.price import Price
from signoff.core.usage import DAY_US, HOUR_US, Dimension, UsageQuery, UsageTotals
from signoff.stores.schema import past_usage
from signoff.stores.usage import _report_statement
from simulation.store import MemoryStore
from simulation.usage import added, plus
from support.stores import AStore, a_job, opened, rows, together

pytestmark = pytest.mark.anyio

PRICE = Price(model="gpt", valid_from=10, input=150_000, output=600_000, cached_input=75_000, request=7)
SOME = st.integers(0, 1000)
SPENT = st.fixed_dictionaries(
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
        "prompt_tokens": SOME,
        "cached_tokens": SOME,
        "completion_tokens": SOME,
        "cost_nanodollars": st.none() | st.integers(0, 10**15),
        "queued_us": st.none() | SOME,
        "ttft_us": st.none() | SOME,
        "generation_us": st.none() | SOME,
    }
)
BY = st.lists(st.sampled_from([name for name in get_args(Dimension) if name != "user"]), unique=True)


async def ended(store: AStore, **more: object) -> Job:
    """A job that is written at its end."""
    job = a_job(**({"status": "success", "lane": "now"} | more))
    return await (await store.jobs.insert_ended(job, actor="ann", verbs=["submit"]))


async def test_prices_are_kept_by_model_and_time(store: AStore, other: AStore) -> None:
    later = msgspec.structs.replace(PRICE, valid_from=20, cached_input=None)
    for price in (later, PRICE, msgspec.structs.replace(PRICE, model="a")):
        await store.usage.put_price(price)
    dearer = msgspec.structs.replace(PRICE, input=2)
    await store.usage.put_price(dearer)

    assert await other.usage.prices() == [msgspec.structs.replace(PRICE, model="a"), dearer, later]
    assert await other.usage.drop_price("gpt", 20)
    assert not await other.usage.drop_price("gpt", 20)
    assert [price.valid_from for price in await store.usage.prices()] == [10, 10]


async def test_nothing_was_used_of_an_empty_store(store: AStore) -> None:
    assert await store.usage.report(UsageQuery(by=("model",))) == ([], UsageTotals())
    assert await store.usage.report(UsageQuery()) == ([], UsageTotals())


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SPENT, min_size=1, max_size=20), BY, st.integers(0, 20))
async def test_all_sums_are_those_of_the_rows_however_they_are_grouped_and_whoever_is_forgotten(
    store: AStore, rows: list[dict[str, object]], by: list[Dimension], forgotten: int
) -> None:
    before = (await store.usage.report(UsageQuery()))[1]
    made = [await ended(store, **row) for row in rows]
    expected = plus(before, added(made))
    await store.jobs.purge(-60, forgotten)

    lines, total = await store.usage.report(UsageQuery(by=tuple(by)))

    assert total == expected
    if by:
        assert plus(*(line.totals for line in lines)) == expected
        assert len({tuple(line.dimensions.items()) for line in lines}) == len(lines)
    [mine, theirs] = [await store.usage.report(UsageQuery(user_id=user)) for user in (1, 2)]
    assert mine[1].jobs + theirs[1].jobs <= expected.jobs


async def test_a_line_says_what_it_is_of(store: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user")
    job = await ended(store, user_id=ann.id, token_id=7, prompt_tokens=3, completion_tokens=2, generation_us=5)
    await ended(store, user_id=0)

    by: tuple[Dimension, ...] = ("user", "token", "hour", "day", "model", "target", "door", "status")
    nobody, line = (await store.usage.report(UsageQuery(by=by)))[0]

    hour, day = job.created_at // HOUR_US * HOUR_US, job.created_at // DAY_US * DAY_US
    assert list(line.dimensions.values()) == ["ann@example.com", 7, hour, day, "echo", "echo", "test", "success"]
    assert line.totals == UsageTotals(
        jobs=1, unpriced=1, timed=1, prompt_tokens=3, completion_tokens=2, generation_us=5
    )
    assert nobody.dimensions["user"] is None


async def test_lines_come_in_pages_and_the_total_is_of_all(store: AStore) -> None:
    for token in (3, 1, 2, 1):
        await ended(store, token_id=token)

    pages = [await store.usage.report(UsageQuery(by=("token",), offset=offset, limit=2)) for offset in (0, 2, 4)]

    assert [[line.dimensions["token"] for line in lines] for lines, _ in pages] == [[1, 2], [3], []]
    assert {total.jobs for _, total in pages} == {4}


async def test_only_the_jobs_of_the_asked_hours_users_and_models_count(store: AStore) -> None:
    job = await ended(store, user_id=1, model="a")
    await ended(store, user_id=2, model="b")
    hour = job.created_at // HOUR_US * HOUR_US

    async def count(**more: object) -> int:
        return (await store.usage.report(UsageQuery(**more)))[1].jobs

    for kept in (True, False):
        assert await count() == 2
        assert await count(user_id=1) == await count(model="b") == 1
        assert await count(user_id=1, model="b") == 0
        assert await count(since=hour + HOUR_US * 2) == await count(until=hour) == 0
        assert await count(since=hour + 5, until=hour + 7) == await count(since=hour, until=hour + HOUR_US) == 2
        if kept:
            assert await store.jobs.purge(-60, 10) == 2


async def test_a_job_counts_when_it_was_written_though_it_was_made_before(store: AStore) -> None:
    job = await ended(store)
    made_at = job.created_at // 1000 - 60 * 60 * 1000
    await ended(store, id=f"{made_at >> 16:08x}-{made_at & 0xFFFF:04x}-7000-8000-000000000000")

    assert (await store.usage.report(UsageQuery(since=job.created_at)))[1].jobs == 2


async def test_a_question_about_a_while_ago_reads_the_rows_since_then_alone(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.db") as store:
        for more in ({}, {"user_id": 1}, {"model": "a"}):
            report = _report_statement(UsageQuery(since=40 * DAY_US, by=("user", "day"), **more))
            told = report.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
            plan = await rows(store, sa.text(f"EXPLAIN QUERY PLAN {told}"))
            assert [step["detail"] for step in plan if "SCAN jobs" in step["detail"]] == []
            assert [step["detail"] for step in plan if "SEARCH jobs" in step["detail"]] != []


async def test_two_processes_that_forget_at_once_count_every_job_once(store: AStore, other: AStore) -> None:
    for _ in range(20):
        await together(ended(store, prompt_tokens=1) for _ in range(10))
        await together(each.jobs.purge(-60, 5) for each in (store, other, store, other))

    assert (await store.usage.report(UsageQuery()))[1].jobs == 200


async def test_what_is_forgotten_bit_by_bit_is_one_sum_an_hour(store: AStore) -> None:
    if isinstance(store, MemoryStore):
        pytest.skip("It keeps every job.")
    for model in ["a", "b"] * 4:
        await ended(store, model=model, prompt="greet" if model == "a" else None, prompt_tokens=1)
        assert await store.jobs.purge(-60, 1) == 1

    kept = await rows(store, sa.select(past_usage.c.hour, past_usage.c.model, past_usage.c.jobs))
    assert {row["model"]: 0 for row in kept} == {"a": 0, "b": 0}
    assert len(kept) == len({(row["hour"], row["model"]) for row in kept})
    assert sum(row["jobs"] for row in kept) == 8


async def test_an_asking_that_came_to_nothing_counts_without_a_job(store: AStore) -> None:
    job = a_job(prompt_tokens=3, completion_tokens=2, cost_nanodollars=7, generation_us=5)
    await store.usage.record(job)

    [line], total = await store.usage.report(UsageQuery(by=("status",)))

    assert line.dimensions == {"status": "stale"}
    assert (
        line.totals
        == total
        == UsageTotals(timed=1, prompt_tokens=3, completion_tokens=2, cost_nanodollars=7, generation_us=5)
    )


async def test_sums_are_too_large_for_nobody(store: AStore) -> None:
    most = 2**31 - 1
    for _ in range(3):
        await ended(store, prompt_tokens=most, completion_tokens=most, cost_nanodollars=10**15, generation_us=2**50)

    total = (await store.usage.report(UsageQuery()))[1]
    assert (total.prompt_tokens, total.cost_nanodollars) == (3 * most, 3 * 10**15)
