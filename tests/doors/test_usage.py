"""Usage and prices: each token that a model reports counts once, has its cost, and is shown only to its user."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fakes.counting import COUNTED, CountingModel, call_in_every_way
from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.latency import MAX_ERROR, SHORTEST_US
from signoff.core.price import NANO, Price, Prices, cost_of, dollars, microdollars
from signoff.core.times import DAY_US
from signoff.core.tokens import Usage
from signoff.runtime.broadcast import Broadcast
from signoff.store import TransitionRequest
from signoff.stores.schema import usage_days, usage_hours
from signoff.work.admin.people import identify
from signoff.work.admin.usage import add_price
from signoff.work.call import answer_call, begin_call
from support import processes
from support.live_server import Live, chat, live, until
from support.processes import ask, clean_environment, free_port, served, signoff
from support.sinks import StepwiseAnswer
from support.stores import execute

pytestmark = pytest.mark.anyio

CALLS = 400
MANY_CALLS = 10_000
PRICE = Price(model="counting", valid_from=0, input=1_000_000, output=3_000_000, cached_input=500_000)


@pytest.fixture
async def counting_model() -> AsyncIterator[CountingModel]:
    """Yield a model server that counts."""
    async with CountingModel() as counting_model:
        yield counting_model


@pytest.fixture
async def server(tmp_path: Path, counting_model: CountingModel) -> AsyncIterator[Live]:
    """Yield a server that has the model `counting`."""
    async with live(tmp_path) as server:
        await server.model("counting", kind="openai", url=counting_model.url)
        yield server


async def usage_report(server: Live, token: str, jobs: int, **params: str) -> dict[str, Any]:
    """Wait until the report covers `jobs` jobs and all have ended; return it."""

    async def ended_report() -> dict[str, Any] | None:
        status, report = await server.ask("GET", "/api/usage", token, params={"by": "status"} | params)
        assert status == 200, report
        ended = {line.get("status") for line in report["data"]} <= {"success", "fail"} or "by" in params
        return report if report["total"]["jobs"] == jobs and ended else None

    return await until(ended_report)


async def last_job(server: Live, *, after: int = 0) -> Any:
    """Wait until the job that follows `after` other jobs has ended; return it."""

    async def ended_job() -> Any:
        jobs = await server.services.store.jobs.list(JobFilter(offset=after))
        return jobs[0] if jobs and jobs[0].is_terminal else None

    return await until(ended_job)


async def test_the_usage_report_equals_the_count_of_the_model(server: Live, counting_model: CountingModel) -> None:
    token = await server.token()

    counts = await call_in_every_way(counting_model, [server.url], token, CALLS, seed=CALLS)

    total = (await usage_report(server, token, CALLS))["total"]
    assert {name: total[name] for name in COUNTED} == {name: counting_model.tokens[name] for name in COUNTED}
    assert all(counts.values())
    assert {*counts} == {*counting_model.kinds}


@pytest.mark.parametrize("kind", ["whole", "bare", "told", "untold", "steady"])
async def test_a_job_has_its_tokens_its_cost_and_its_times(
    server: Live, counting_model: CountingModel, kind: str
) -> None:
    await add_price(server.services, PRICE)
    await send_chat(server, f"{kind} 5")

    job = await last_job(server)

    tokens = {name: getattr(job, name) for name in COUNTED}
    assert tokens == {name: counting_model.tokens[name] for name in COUNTED}
    usage = Usage(**tokens)
    assert job.cost_nanodollars == cost_of(PRICE, usage) > 0
    assert job.ttft_us >= 0  # the clock of the event loop has whole milliseconds
    assert job.queued_us >= 0
    assert job.generation_us >= 0


async def send_chat(server: Live, text: str) -> None:
    options = {"stream": True} if text.split(maxsplit=1)[0] not in {"whole", "bare", "broken"} else {}
    await server.ask("POST", "/v1/chat/completions", await server.token(), json=chat(text, "counting", **options))


async def test_the_cost_of_a_model_without_a_price_is_unknown_and_not_zero(server: Live) -> None:
    await send_chat(server, "whole 5")

    assert (await last_job(server)).cost_nanodollars is None
    report = await usage_report(server, await server.token("admin"), 1)
    assert (report["total"]["unpriced_jobs"], report["total"]["cost"]) == (1, "0")


async def test_an_ended_job_keeps_its_cost_when_prices_change(server: Live) -> None:
    await add_price(server.services, PRICE)
    await send_chat(server, "whole 1")
    before = await last_job(server, after=0)
    await add_price(
        server.services, msgspec.structs.replace(PRICE, valid_from=server.services.clock(), input=9, output=9)
    )

    await send_chat(server, "whole 1")

    after = await last_job(server, after=1)
    assert (await server.services.store.jobs.get(before.id)).cost_nanodollars == before.cost_nanodollars
    assert after.cost_nanodollars < before.cost_nanodollars


async def test_a_job_that_is_sent_back_counts_every_call_of_its_model(
    server: Live, counting_model: CountingModel
) -> None:
    admin = await server.token("admin")
    await add_price(server.services, PRICE)
    await server.model("held", kind="openai", url=counting_model.url, review="always")
    body = {"target": "held", "body": chat("whole 4", "held")}
    _, created = await server.ask("POST", "/api/jobs", admin, json=body)

    job = await server.job_when(admin, created["job_id"], lambda job: job["status"] == "human")
    assert (await server.ask("POST", "/reviewJob", admin, json={"id": job["job_id"], "status": "bot"}))[0] == 200
    again = await server.job_when(admin, created["job_id"], lambda job: job["round"] == 2 and job["status"] == "human")

    assert again["usage"] == {name: counting_model.tokens[name] for name in COUNTED}
    assert counting_model.kinds["whole"] == 2


async def test_an_answer_that_comes_after_its_job_was_cancelled_counts_too(
    server: Live, counting_model: CountingModel
) -> None:
    admin = await server.token("admin")
    _, created = await server.ask("POST", "/api/jobs", admin, json={"body": chat("slow 6", "counting")})
    await counting_model.received()
    job = await server.services.store.jobs.get(created["job_id"])
    server.services.runtime.leases.drop(job.id)  # so the worker does not learn of the cancellation
    await server.services.store.jobs.transition(job.id, TransitionRequest(verb="cancel", actor="test"))

    counting_model.release.set()

    async def report_with_tokens() -> dict[str, Any] | None:
        _, report = await server.ask("GET", "/api/usage?by=status", admin)
        return report if report["total"]["prompt_tokens"] else None

    report = await until(report_with_tokens)
    assert {name: report["total"][name] for name in COUNTED} == {name: counting_model.tokens[name] for name in COUNTED}
    assert [(line["status"], line["jobs"]) for line in report["data"]] == [("fail", 1), ("stale", 0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_whose_caller_disconnects_while_its_end_is_written_counts_once(
    server: Live, counting_model: CountingModel, stream: bool
) -> None:
    admin = await server.token("admin")
    # given a call whose row exists and whose end is being written
    transition, begun, go_on = server.services.store.jobs.transition, asyncio.Event(), asyncio.Event()

    async def slowly(*args: Any, **more: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await transition(*args, **more)

    server.services.store.jobs.transition = slowly  # type: ignore[method-assign]
    body, headers = chat("told 4" if stream else "whole 4", "counting", stream=stream), {"idempotency-key": "one"}
    call = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", admin, json=body, headers=headers))
    await begun.wait()
    # when its caller disconnects
    (broadcast,) = server.services.runtime.inflight_calls._broadcasts.values()
    call.cancel()
    await until(lambda: _is_abandoned(broadcast))
    go_on.set()
    # then its tokens count once
    await usage_report(server, admin, 1)
    await asyncio.wait([broadcast.task])
    report = await usage_report(server, admin, 1)
    assert {name: report["total"][name] for name in COUNTED} == {name: counting_model.tokens[name] for name in COUNTED}


async def test_a_cancelled_stream_counts_though_its_client_disconnects(
    server: Live, counting_model: CountingModel
) -> None:
    admin = await server.token("admin")
    body = msgspec.json.encode(chat("left 5", "counting", stream=True))
    caller = await identify(server.services, admin)
    ask = Ask(door="openai", caller=caller, body=body, target="counting", stream=True, lane="now")
    call = await begin_call(server.services, ask)
    answer = StepwiseAnswer(lambda sink: answer_call(server.services, call, sink))
    for _ in range(5):
        await answer.next()

    call.inflight.attempt.on_lease_lost()
    await answer.leave()

    async def report_with_rows() -> dict[str, Any] | None:
        _, report = await server.ask("GET", "/api/usage?by=status", admin)
        return report if report["data"] else None

    report = await until(report_with_rows)
    assert [line["status"] for line in report["data"]] == ["stale"]
    assert {name: report["total"][name] for name in COUNTED} == {name: counting_model.tokens[name] for name in COUNTED}


async def _is_abandoned(broadcast: Broadcast) -> bool | None:
    return broadcast.is_abandoned or None


async def test_invalid_usage_of_an_upstream_breaks_no_totals(server: Live) -> None:
    await server.model("echo-ish", kind="subprocess", command=("sed", "-u", 's/.*/{"usage":{"prompt_tokens":-5}}/'))
    huge = '{"usage":{"prompt_tokens":99999999999999999999999,"completion_tokens":2}}'
    await server.model("huge", kind="subprocess", command=("sed", "-u", f"s/.*/{huge}/"))
    token = await server.token()
    for name in ("echo-ish", "huge", "huge"):
        status, answer = await server.ask("POST", f"/post/predict?id={name}", token, json={})
        assert status == 200, answer

    total = (await usage_report(server, token, 3))["total"]
    assert (total["prompt_tokens"], total["completion_tokens"]) == (0, 4)


async def test_users_see_their_own_usage_and_admins_see_all(server: Live) -> None:
    ann, bob = await server.token(email="ann@x"), await server.token(email="bob@x")
    admin, reviewer = await server.token("admin"), await server.token("reviewer")
    for token in (ann, ann, bob):
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"))

    assert (await usage_report(server, admin, 3, by="user"))["total"]["jobs"] == 3
    lines = (await usage_report(server, ann, 2, by="user"))["data"]
    assert [line["user"] for line in lines] == ["ann@x"]
    assert (await usage_report(server, reviewer, 0))["data"] == []
    assert (await server.ask("GET", "/api/usage"))[0] == 401


async def test_usage_as_csv_contains_no_formulas(server: Live) -> None:
    token = await server.token("admin")
    await server.model("=cmd|' /C calc'!A0")
    for name in ("=cmd|' /C calc'!A0", "echo"):
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", name))
    await usage_report(server, token, 2)

    _, text = await server.ask("GET", "/api/usage?by=model,day&format=csv", token)
    _, same = await server.ask("GET", "/api/usage?by=model,day", token, headers={"accept": "text/csv"})

    header, evil, plain, end = text.split("\r\n")
    assert header.startswith("model,day,jobs,unpriced_jobs,prompt_tokens,")
    assert evil.startswith("'=cmd|' /C calc'!A0,20")
    assert plain.startswith("echo,20")
    assert (end, same) == ("", text)


async def test_a_report_without_since_covers_the_last_month(server: Live) -> None:
    token = await server.token()
    await server.ask("POST", "/v1/chat/completions", token, json=chat("hello"))
    await usage_report(server, token, 1)

    for time in (usage_hours.c.hour, usage_days.c.day):
        older = sa.update(time.table).values({time: time - 32 * DAY_US})
        await execute(server.services.store, older)  # type: ignore[arg-type]

    await usage_report(server, token, 0)
    await usage_report(server, token, 1, since="2020-01-01")


@pytest.mark.parametrize(
    "query", ["by=nothing", "since=yesterday", "limit=0", "limit=10001", "offset=-1", "until=9999-99-99"]
)
async def test_an_invalid_usage_query_is_a_400(server: Live, query: str) -> None:
    status, problem = await server.ask("GET", f"/api/usage?{query}", await server.token())

    assert status == 400
    assert problem["code"]


async def test_only_admins_set_prices_and_all_users_read_them(server: Live) -> None:
    user, admin = await server.token(), await server.token("admin")
    price = {"model": "gpt-*", "input": "0.15", "output": "0.6", "cached_input": "0.075", "valid_from": "2026-01-31"}

    assert (await server.ask("PUT", "/api/prices", user, json=price))[0] == 403
    assert (await server.ask("PUT", "/api/prices", admin, json=price))[0] == 200
    _, listed = await server.ask("GET", "/api/prices", user)
    expected = price | {"valid_from": "2026-01-31T00:00:00.000000Z", "request": "0"}
    assert listed["data"] == [expected]
    price_key = {"model": "gpt-*", "valid_from": "2026-01-31"}
    assert (await server.ask("DELETE", "/api/prices", user, params=price_key))[0] == 403
    assert (await server.ask("DELETE", "/api/prices", admin, params=price_key))[0] == 204
    assert (await server.ask("DELETE", "/api/prices", admin, params=price_key))[0] == 404


@pytest.mark.parametrize(
    "price",
    [
        {"input": "1", "output": "1"},
        {"model": "", "input": "1", "output": "1"},
        {"model": "a*b", "input": "1", "output": "1"},
        {"model": "a", "input": "-1", "output": "1"},
        {"model": "a", "input": "1e99", "output": "1"},
        {"model": "a", "input": "NaN", "output": "1"},
        {"model": "a", "input": "0.0000001", "output": "1"},
        {"model": "a", "input": 1, "output": "1"},
        {"model": "a", "input": "1", "output": "1", "valid_from": "soon"},
        [],
    ],
)
async def test_an_invalid_price_is_a_400(server: Live, price: Any) -> None:
    assert (await server.ask("PUT", "/api/prices", await server.token("admin"), json=price))[0] == 400


# Prices


def test_a_price_is_the_latest_by_its_time_for_the_closest_name() -> None:
    prices = Prices(
        Price(model=name, valid_from=at, input=number, output=0)
        for number, (name, at) in enumerate([("*", 0), ("gpt-*", 5), ("gpt-4", 10), ("gpt-4", 20)])
    )

    inputs = [
        [(price := prices.at(name, at)) and price.input for at in (0, 5, 10, 20)] for name in ("x", "gpt-3", "gpt-4")
    ]

    assert inputs == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert Prices([]).at("x", 0) is None


def test_a_cost_is_exact_to_half_a_nanodollar() -> None:
    price = Price(model="a", valid_from=0, input=150_000, output=600_000, cached_input=37_500, request=2)

    usage = Usage(prompt_tokens=10, cached_tokens=3, completion_tokens=5)
    assert cost_of(price, usage) == 7 * 150 + round(3 * 37.5 + 0.01) + 5 * 600 + 2000
    assert cost_of(price, Usage(prompt_tokens=1, cached_tokens=5)) == 38 + 2000


@given(st.integers(0, 10**12))
def test_a_price_survives_a_round_trip_as_text(amount: int) -> None:
    assert microdollars(dollars(amount)) == amount
    assert dollars(amount * 1000, NANO) == dollars(amount)


# Real processes


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_thousand_calls_through_two_servers_are_all_counted(
    tmp_path: Path, postgres_url: str, counting_model: CountingModel, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = clean_environment(tmp_path / "data", SIGNOFF_DATABASE_URL=postgres_url)
    signoff(environment, "migrate")
    signoff(environment, "model", "add", "counting", "--kind", "openai", "--url", counting_model.url)
    signoff(environment, "price", "set", "counting", "--input", "1", "--output", "2", "--cached-input", "0.5")
    token = signoff(environment, "token", "create", "ann@example.com", "--role", "admin", "--quiet").strip()
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        for port in ports:
            (tmp_path / str(port)).mkdir()
            stack.enter_context(served(environment, tmp_path / str(port), port))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        counts = await call_in_every_way(counting_model, urls, token, MANY_CALLS, seed=MANY_CALLS)

        def final_report() -> dict[str, Any] | None:
            report = ask(ports[0], "/api/usage?by=status", token)
            done = {line["status"] for line in report["data"]}.isdisjoint({"bot", "human"})
            return report if done and report["total"]["jobs"] == MANY_CALLS else None

        report = await asyncio.to_thread(processes.until, final_report, 120)
    with capsys.disabled():
        sys.stdout.write(f"\n{dict(counts)}\ncounted {dict(counting_model.tokens)}\nreported {report}\n")
    assert {name: report["total"][name] for name in COUNTED} == {name: counting_model.tokens[name] for name in COUNTED}
    cost = Price(model="counting", valid_from=0, input=10**6, output=2 * 10**6, cached_input=5 * 10**5)
    assert report["total"]["cost"] == dollars(cost_of(cost, Usage(**counting_model.tokens)), NANO)


async def test_latencies_are_percentiles_of_the_rows(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await server.model("parrot")
        token, other = await server.token(), await server.token(email="other@example.com")
        for number in range(40):
            await server.ask("POST", "/v1/chat/completions", token, json=chat(f"hello {number}", "parrot"))
        await server.ask("POST", "/v1/chat/completions", other, json=chat("hello"))
        jobs = [job for job in await server.services.store.jobs.list(JobFilter(limit=100)) if job.model == "parrot"]
        exact = sorted(max(SHORTEST_US, (job.ttft_us or 0) + (job.generation_us or 0)) for job in jobs)

        _, answer = await server.ask("GET", "/api/usage/latencies", token)
        [row] = answer["data"]
        assert (row["model"], row["jobs"]) == ("parrot", 40)
        for share, index in ((50, 19), (95, 37), (99, 39)):
            assert abs(row[f"answer_p{share}_us"] - exact[index]) <= MAX_ERROR * exact[index]
        _, text = await server.ask("GET", "/api/usage/latencies?by=model&format=csv", token)
        header, line = text.strip().splitlines()
        assert dict(zip(header.split(","), line.split(","), strict=True)) == {n: str(v) for n, v in row.items()}
        # an admin sees those of all
        _, answer = await server.ask("GET", "/api/usage/latencies?by=day", await server.token("admin"))
        assert sum(each["jobs"] for each in answer["data"]) == 41  # of two days at midnight
        assert (await server.ask("GET", "/api/usage/latencies?by=user", token))[0] == 400
