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
from signoff.core.price import NANO, Price, Prices, cost_of, dollars, microdollars
from signoff.core.tokens import Usage
from signoff.core.usage import DAY_US
from signoff.runtime.broadcast import Broadcast
from signoff.store import TransitionRequest
from signoff.stores.schema import jobs
from signoff.work.admin.people import identify
from signoff.work.admin.usage import add_price
from signoff.work.call import begin_call, call_chunks
from support import processes
from support.live_server import Live, chat, live, until
from support.processes import ask, clean_environment, free_port, served, signoff
from support.stores import execute

pytestmark = pytest.mark.anyio

CALLS = 400
MANY_CALLS = 10_000
DEAR = Price(model="counting", valid_from=0, input=1_000_000, output=3_000_000, cached_input=500_000)


@pytest.fixture
async def meter() -> AsyncIterator[CountingModel]:
    """Yield a model server that counts."""
    async with CountingModel() as meter:
        yield meter


@pytest.fixture
async def server(tmp_path: Path, meter: CountingModel) -> AsyncIterator[Live]:
    """Yield a server that has the model `counting`."""
    async with live(tmp_path) as server:
        await server.model("counting", kind="openai", url=meter.url)
        yield server


async def used(server: Live, token: str, jobs: int, **params: str) -> dict[str, Any]:
    """Wait until the report covers `jobs` jobs and all have ended; return it."""

    async def look() -> dict[str, Any] | None:
        status, report = await server.ask("GET", "/api/usage", token, params={"by": "status"} | params)
        assert status == 200, report
        ended = {line.get("status") for line in report["data"]} <= {"success", "fail"} or "by" in params
        return report if report["total"]["jobs"] == jobs and ended else None

    return await until(look)


async def last_job(server: Live, *, after: int = 0) -> Any:
    """Wait until the job that follows `after` other jobs has ended; return it."""

    async def look() -> Any:
        jobs = await server.services.store.jobs.list(JobFilter(offset=after))
        return jobs[0] if jobs and jobs[0].is_terminal else None

    return await until(look)


async def test_the_sum_of_usage_is_what_the_model_counted_to_the_token(server: Live, meter: CountingModel) -> None:
    token = await server.token()

    made = await call_in_every_way(meter, [server.url], token, CALLS, seed=CALLS)

    total = (await used(server, token, CALLS))["total"]
    assert {name: total[name] for name in COUNTED} == {name: meter.tokens[name] for name in COUNTED}
    assert all(made.values())
    assert {*made} == {*meter.kinds}


@pytest.mark.parametrize("kind", ["whole", "bare", "told", "untold", "steady"])
async def test_a_job_has_its_tokens_its_cost_and_its_times(server: Live, meter: CountingModel, kind: str) -> None:
    await add_price(server.services, DEAR)
    await call_of(server, f"{kind} 5")

    job = await last_job(server)

    tokens = {name: getattr(job, name) for name in COUNTED}
    assert tokens == {name: meter.tokens[name] for name in COUNTED}
    usage = Usage(**tokens)
    assert job.cost_nanodollars == cost_of(DEAR, usage) > 0
    assert job.ttft_us > 0
    assert job.queued_us >= 0
    assert job.generation_us >= 0


async def call_of(server: Live, text: str) -> None:
    streamed = {"stream": True} if text.split(maxsplit=1)[0] not in {"whole", "bare", "broken"} else {}
    await server.ask("POST", "/v1/chat/completions", await server.token(), json=chat(text, "counting", **streamed))


async def test_the_cost_of_a_model_without_a_price_is_unknown_and_not_zero(server: Live) -> None:
    await call_of(server, "whole 5")

    assert (await last_job(server)).cost_nanodollars is None
    report = await used(server, await server.token("admin"), 1)
    assert (report["total"]["unpriced_jobs"], report["total"]["cost"]) == (1, "0")


async def test_what_has_ended_keeps_its_cost_when_prices_change(server: Live) -> None:
    await add_price(server.services, DEAR)
    await call_of(server, "whole 1")
    before = await last_job(server, after=0)
    await add_price(
        server.services, msgspec.structs.replace(DEAR, valid_from=server.services.clock(), input=9, output=9)
    )

    await call_of(server, "whole 1")

    after = await last_job(server, after=1)
    assert (await server.services.store.jobs.get(before.id)).cost_nanodollars == before.cost_nanodollars
    assert after.cost_nanodollars < before.cost_nanodollars


async def test_a_job_that_is_asked_again_counts_every_asking(server: Live, meter: CountingModel) -> None:
    admin = await server.token("admin")
    await add_price(server.services, DEAR)
    await server.model("held", kind="openai", url=meter.url, review="always")
    body = {"target": "held", "body": chat("whole 4", "held")}
    _, made = await server.ask("POST", "/api/jobs", admin, json=body)

    job = await server.job_when(admin, made["job_id"], lambda job: job["status"] == "human")
    assert (await server.ask("POST", "/reviewJob", admin, json={"id": job["job_id"], "status": "bot"}))[0] == 200
    again = await server.job_when(admin, made["job_id"], lambda job: job["round"] == 2 and job["status"] == "human")

    assert again["usage"] == {name: meter.tokens[name] for name in COUNTED}
    assert meter.kinds["whole"] == 2


async def test_an_answer_that_comes_after_its_job_was_cancelled_counts_too(server: Live, meter: CountingModel) -> None:
    admin = await server.token("admin")
    _, made = await server.ask("POST", "/api/jobs", admin, json={"target": "counting", "body": chat("slow 6")})
    await meter.received()
    job = await server.services.store.jobs.get(made["job_id"])
    server.services.runtime.leases.drop(job.id)  # so the worker does not learn of the cancellation
    await server.services.store.jobs.transition(job.id, TransitionRequest(verb="cancel", actor="test"))

    meter.release.set()

    async def look() -> dict[str, Any] | None:
        _, report = await server.ask("GET", "/api/usage?by=status", admin)
        return report if report["total"]["prompt_tokens"] else None

    report = await until(look)
    assert {name: report["total"][name] for name in COUNTED} == {name: meter.tokens[name] for name in COUNTED}
    assert [(line["status"], line["jobs"]) for line in report["data"]] == [("fail", 1), ("stale", 0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_left_while_its_end_is_written_counts_once(
    server: Live, meter: CountingModel, stream: bool
) -> None:
    admin = await server.token("admin")
    # given a call whose row exists and whose end is being written
    move, begun, go_on = server.services.store.jobs.transition, asyncio.Event(), asyncio.Event()

    async def slowly(*step: Any, **more: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await move(*step, **more)

    server.services.store.jobs.transition = slowly  # type: ignore[method-assign]
    body, headers = chat("told 4" if stream else "whole 4", "counting", stream=stream), {"idempotency-key": "one"}
    asking = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", admin, json=body, headers=headers))
    await begun.wait()
    # when its caller disconnects
    (shared,) = server.services.runtime.inflight_calls._broadcasts.values()
    asking.cancel()
    await until(lambda: _is_left(shared))
    go_on.set()
    # then its tokens count once
    await used(server, admin, 1)
    await asyncio.wait([shared.task])
    report = await used(server, admin, 1)
    assert {name: report["total"][name] for name in COUNTED} == {name: meter.tokens[name] for name in COUNTED}


async def test_a_call_that_was_cancelled_while_its_client_read_counts_though_that_leaves(
    server: Live, meter: CountingModel
) -> None:
    admin = await server.token("admin")
    body = msgspec.json.encode(chat("left 5", "counting", stream=True))
    caller = await identify(server.services, admin)
    ask = Ask(door="openai", caller=caller, body=body, target="counting", stream=True, lane="now")
    call = await begin_call(server.services, ask)
    chunks = call_chunks(server.services, call)
    for _ in range(5):
        await anext(chunks)

    call.inflight.on_lease_lost()
    await chunks.aclose()

    async def look() -> dict[str, Any] | None:
        _, report = await server.ask("GET", "/api/usage?by=status", admin)
        return report if report["data"] else None

    report = await until(look)
    assert [line["status"] for line in report["data"]] == ["stale"]
    assert {name: report["total"][name] for name in COUNTED} == {name: meter.tokens[name] for name in COUNTED}


async def _is_left(shared: Broadcast) -> bool | None:
    return shared.is_abandoned or None


async def test_upstreams_that_tell_nonsense_break_no_sums(server: Live) -> None:
    await server.model("echo-ish", kind="subprocess", command=("sed", "-u", 's/.*/{"usage":{"prompt_tokens":-5}}/'))
    huge = '{"usage":{"prompt_tokens":99999999999999999999999,"completion_tokens":2}}'
    await server.model("huge", kind="subprocess", command=("sed", "-u", f"s/.*/{huge}/"))
    token = await server.token()
    for name in ("echo-ish", "huge", "huge"):
        status, answer = await server.ask("POST", f"/post/predict?id={name}", token, json={})
        assert status == 200, answer

    total = (await used(server, token, 3))["total"]
    assert (total["prompt_tokens"], total["completion_tokens"]) == (2_000_000_000, 4)


async def test_everybody_sees_their_own_usage_and_an_admin_all(server: Live) -> None:
    ann, bob = await server.token(email="ann@x"), await server.token(email="bob@x")
    admin, reviewer = await server.token("admin"), await server.token("reviewer")
    for token in (ann, ann, bob):
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"))

    assert (await used(server, admin, 3, by="user"))["total"]["jobs"] == 3
    lines = (await used(server, ann, 2, by="user"))["data"]
    assert [line["user"] for line in lines] == ["ann@x"]
    assert (await used(server, reviewer, 0))["data"] == []
    assert (await server.ask("GET", "/api/usage"))[0] == 401


async def test_usage_can_be_had_as_csv_in_which_nothing_is_a_formula(server: Live) -> None:
    token = await server.token("admin")
    await server.model("=cmd|' /C calc'!A0")
    for name in ("=cmd|' /C calc'!A0", "echo"):
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", name))
    await used(server, token, 2)

    _, text = await server.ask("GET", "/api/usage?by=model,day&format=csv", token)
    _, same = await server.ask("GET", "/api/usage?by=model,day", token, headers={"accept": "text/csv"})

    header, evil, plain, end = text.split("\r\n")
    assert header.startswith("model,day,jobs,unpriced_jobs,prompt_tokens,")
    assert evil.startswith("'=cmd|' /C calc'!A0,20")
    assert plain.startswith("echo,20")
    assert (end, same) == ("", text)


async def test_a_question_without_since_is_about_the_last_month(server: Live) -> None:
    token = await server.token()
    await server.ask("POST", "/v1/chat/completions", token, json=chat("hello"))
    await used(server, token, 1)

    older = sa.update(jobs).values(created_at=jobs.c.created_at - 32 * DAY_US)
    await execute(server.services.store, older)  # type: ignore[arg-type]

    await used(server, token, 0)
    await used(server, token, 1, since="2020-01-01")


@pytest.mark.parametrize(
    "query", ["by=nothing", "since=yesterday", "limit=0", "limit=10001", "offset=-1", "until=9999-99-99"]
)
async def test_a_question_that_makes_no_sense_is_a_400(server: Live, query: str) -> None:
    status, problem = await server.ask("GET", f"/api/usage?{query}", await server.token())

    assert status == 400
    assert problem["code"]


async def test_only_an_admin_sets_prices_and_everybody_may_know_them(server: Live) -> None:
    user, admin = await server.token(), await server.token("admin")
    price = {"model": "gpt-*", "input": "0.15", "output": "0.6", "cached_input": "0.075", "valid_from": "2026-01-31"}

    assert (await server.ask("PUT", "/api/prices", user, json=price))[0] == 403
    assert (await server.ask("PUT", "/api/prices", admin, json=price))[0] == 200
    _, listed = await server.ask("GET", "/api/prices", user)
    expected = price | {"valid_from": "2026-01-31T00:00:00.000000Z", "request": "0"}
    assert listed["data"] == [expected]
    gone = {"model": "gpt-*", "valid_from": "2026-01-31"}
    assert (await server.ask("DELETE", "/api/prices", user, params=gone))[0] == 403
    assert (await server.ask("DELETE", "/api/prices", admin, params=gone))[0] == 204
    assert (await server.ask("DELETE", "/api/prices", admin, params=gone))[0] == 404


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
async def test_a_price_that_makes_no_sense_is_a_400(server: Live, price: Any) -> None:
    assert (await server.ask("PUT", "/api/prices", await server.token("admin"), json=price))[0] == 400


# Prices


def test_the_price_of_a_time_is_the_latest_by_then_of_the_nearest_name() -> None:
    prices = Prices(
        Price(model=name, valid_from=at, input=number, output=0)
        for number, (name, at) in enumerate([("*", 0), ("gpt-*", 5), ("gpt-4", 10), ("gpt-4", 20)])
    )

    found = [
        [(price := prices.at(name, at)) and price.input for at in (0, 5, 10, 20)] for name in ("x", "gpt-3", "gpt-4")
    ]

    assert found == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert Prices([]).at("x", 0) is None


def test_a_cost_is_exact_to_half_a_nanodollar() -> None:
    price = Price(model="a", valid_from=0, input=150_000, output=600_000, cached_input=37_500, request=2)

    usage = Usage(prompt_tokens=10, cached_tokens=3, completion_tokens=5)
    assert cost_of(price, usage) == 7 * 150 + round(3 * 37.5 + 0.01) + 5 * 600 + 2000
    assert cost_of(price, Usage(prompt_tokens=1, cached_tokens=5)) == 38 + 2000


@given(st.integers(0, 10**12))
def test_a_price_reads_as_it_was_written(amount: int) -> None:
    assert microdollars(dollars(amount)) == amount
    assert dollars(amount * 1000, NANO) == dollars(amount)


# Real processes


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_thousand_calls_through_two_servers_are_counted_to_the_token(
    tmp_path: Path, postgres_url: str, meter: CountingModel, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = clean_environment(tmp_path / "data", SIGNOFF_DATABASE_URL=postgres_url)
    signoff(environment, "migrate")
    signoff(environment, "model", "add", "counting", "--kind", "openai", "--url", meter.url)
    signoff(environment, "price", "set", "counting", "--input", "1", "--output", "2", "--cached-input", "0.5")
    token = signoff(environment, "token", "create", "ann@example.com", "--role", "admin", "--quiet").strip()
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        for port in ports:
            (tmp_path / str(port)).mkdir()
            stack.enter_context(served(environment, tmp_path / str(port), port))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        made = await call_in_every_way(meter, urls, token, MANY_CALLS, seed=MANY_CALLS)

        def look() -> dict[str, Any] | None:
            report = ask(ports[0], "/api/usage?by=status", token)
            done = {line["status"] for line in report["data"]}.isdisjoint({"bot", "human"})
            return report if done and report["total"]["jobs"] == MANY_CALLS else None

        report = await asyncio.to_thread(processes.until, look, 120)
    with capsys.disabled():
        sys.stdout.write(f"\n{dict(made)}\ncounted {dict(meter.tokens)}\nreported {report}\n")
    assert {name: report["total"][name] for name in COUNTED} == {name: meter.tokens[name] for name in COUNTED}
    cost = Price(model="counting", valid_from=0, input=10**6, output=2 * 10**6, cached_input=5 * 10**5)
    assert report["total"]["cost"] == dollars(cost_of(cost, Usage(**meter.tokens)), NANO)
