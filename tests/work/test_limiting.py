"""Limits at the doors: who has no room is told until when, in the door's own words, and what is reserved comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from fakes.http_server import LIMIT_SECONDS
from fakes.upstream import fake_upstream
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.limits import SECOND, Counter, ReservationRequest
from signoff.errors import Overloaded
from signoff.stores.schema import counters
from support.ages import grow_older
from support.live_server import Live, chat, client, live, until, words

pytestmark = pytest.mark.anyio


async def limit(server: Live, who: str = "each", model: str | None = None, **numbers: int) -> None:
    """Sets a limit, as an admin does."""
    query = "" if model is None else f"?model={model}"
    admin = await server.token("admin")
    status, told = await server.ask("PUT", f"/api/limits/{who}{query}", admin, json=numbers)
    assert status == 200, told


async def used(server: Live, name: str) -> Counter:
    """What counts now."""
    return (await server.services.store.quotas.counters([name])).get(name, Counter())


async def the_only_user_has(server: Live) -> Counter:
    """What counts now of the one user who is limited."""
    names = await server.services.store._database.read(
        lambda conn, _: list(conn.execute(sa.select(counters.c.name)).scalars())
    )  # type: ignore[attr-defined]
    assert len(names) == 1
    return await used(server, names[0])


async def asked(server: Live, token: str, text: str = "hello", model: str = "echo", **more: Any) -> Any:
    """The status, the headers and the JSON of one chat."""
    headers = {"authorization": f"Bearer {token}"}
    body = chat(text, model, **more)
    async with server.http.post(server.url + "/v1/chat/completions", headers=headers, json=body) as response:
        return (
            response.status,
            response.headers,
            await response.json(content_type=None) if response.ok else json.loads(await response.read()),
        )


async def test_every_limited_answer_tells_what_is_left(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=100, tokens_per_minute=10_000)
        token = await server.token()
        _, headers, _ = await asked(server, token, "x" * 40, max_tokens=90)
        told = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
        assert told == {
            "x-ratelimit-limit-requests": "100",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "10000",
            "x-ratelimit-remaining-tokens": "9900",
            "x-ratelimit-reset-tokens": "1m0s",
        }
        # then what was reserved and not used has come back
        _, headers, answer = await asked(server, token, "x" * 40, max_tokens=90)
        assert int(headers["x-ratelimit-remaining-tokens"]) == 10_000 - 100 - answer["usage"]["total_tokens"]
        assert headers["x-ratelimit-remaining-requests"] == "98"


async def test_nobody_without_a_limit_is_told_of_any(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, "user:admin@example.com", requests_per_minute=1)
        status, headers, _ = await asked(server, await server.token())
        assert status == 200
        assert not [name for name in headers if name.startswith("x-ratelimit")]


async def test_who_has_no_room_gets_a_429_that_says_until_when(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=0) as official:
        await limit(server, requests_per_minute=1)
        await official.chat.completions.create(**chat("one"))
        await grow_older(server.services.store, 20)
        with pytest.raises(openai.RateLimitError) as raised:
            await official.chat.completions.create(**chat("two"))
        error = raised.value
        assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
        assert "Each user may use 1 requests per minute" in error.message
        headers = error.response.headers
        assert 38_000 < int(headers["retry-after-ms"]) <= 40_000
        assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
        # then nobody has written down what was not asked
        assert await server.services.store.jobs.count(JobFilter()) == 1


async def test_the_official_clients_own_retry_waits_as_long_as_it_is_told_and_succeeds(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=1) as official:
        await limit(server, requests_per_minute=1)
        await official.chat.completions.create(**chat("one"))
        await grow_older(server.services.store, 58.5)
        # when it is refused, then once the told time has passed it is not
        answer = await official.chat.completions.create(**chat("two"))
        assert answer.choices[0].message.content == "two"


async def test_a_budget_that_is_spent_is_told_as_openai_tells_it_and_not_retried(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=5) as official:
        await limit(server, tokens_per_month=20)
        await official.chat.completions.create(**chat("one", "echo/tokens=50"))
        with pytest.raises(openai.RateLimitError) as raised:
            await official.chat.completions.create(**chat("two"))
        assert (raised.value.code, raised.value.type) == ("insufficient_quota", "insufficient_quota")
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert 0 < int(raised.value.response.headers["retry-after"]) <= 31 * 24 * 3600


async def test_a_request_larger_than_its_limit_is_told_that_no_waiting_helps(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=100)
        status, headers, told = await asked(server, await server.token(), max_tokens=101)
        assert (status, headers["x-should-retry"], told["error"]["code"]) == (429, "false", "rate_limit_exceeded")
        assert "retry-after" not in headers
        assert (await asked(server, await server.token()))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_used_counts_and_nothing_more(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=10_000, tokens_per_day=10_000, parallel=5)
        token = await server.token()
        body = chat("hello", "echo/tokens=50", max_tokens=500, stream=stream, stream_options={"include_usage": True})
        await server.ask("POST", "/v1/chat/completions", token, json=body)
        [job] = await server.services.store.jobs.list(JobFilter())
        assert job.usage is not None
        meter = await the_only_user_has(server)
        assert [entry.tokens for entry in meter.entries] == [job.usage.total_tokens]
        assert (meter.day.tokens, meter.pending) == (job.usage.total_tokens, ())


async def test_a_failure_gives_the_tokens_back(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=10, tokens_per_minute=1000, tokens_per_day=1000, parallel=1)
        token = await server.token()
        assert (await asked(server, token, model="echo/status=500", max_tokens=900))[0] == 500
        meter = await the_only_user_has(server)
        assert [(entry.requests, entry.tokens) for entry in meter.entries] == [(1, 0)]
        assert (meter.day.tokens, meter.pending) == (0, ())


async def test_who_leaves_in_the_middle_of_a_stream_has_used_what_was_said(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, tokens_per_minute=10_000, parallel=1)
        token = await server.token()
        body = chat("hello", "stuck", stream=True, max_tokens=5000)
        asking = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=body))
        await fake.until_stuck()
        assert len((await the_only_user_has(server)).pending) == 1
        asking.cancel()

        async def look() -> Counter | None:
            meter = await the_only_user_has(server)
            return None if meter.pending else meter

        meter = await until(look)
        assert 0 < sum(entry.tokens for entry in meter.entries) < 100


async def test_a_call_that_its_owner_cancels_has_used_what_was_said(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_after_seconds=0.05) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, tokens_per_minute=10_000, tokens_per_day=10_000)
        token = await server.token()
        body = chat("hello", "stuck", stream=True, max_tokens=5000)
        asking = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=body))

        async def look() -> str | None:
            found = await server.services.store.jobs.list(JobFilter(status="bot"))
            return found[0].id if found and fake.stuck.is_set() else None

        job_id = await until(look)
        assert (await server.ask("DELETE", f"/api/jobs/{job_id}", token))[0] == 200
        await asking
        meter = await the_only_user_has(server)
        assert 0 < sum(entry.tokens for entry in meter.entries) < 100
        assert meter.day.tokens == sum(entry.tokens for entry in meter.entries)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_does_not_wait_for_a_database_that_is_away_and_counts_afterwards(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server, quotas_away(server, monkeypatch) as back:
        await limit(server, tokens_per_day=10_000)
        token = await server.token()
        async with asyncio.timeout(LIMIT_SECONDS):
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", stream=stream))
        assert status == 200
        back.set()

        async def look() -> tuple[Counter, Job] | None:
            meter, found = await the_only_user_has(server), await server.services.store.jobs.list(JobFilter())
            return (meter, found[0]) if found and not meter.pending else None

        meter, job = await until(look)
        assert meter.day.tokens == job.prompt_tokens + job.completion_tokens > 0


async def test_who_cannot_be_written_down_is_told_so_though_their_room_cannot_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server, quotas_away(server, monkeypatch) as back:
        await limit(server, tokens_per_day=10_000, requests_per_minute=5)
        token = await server.token()

        async def insert(*_: Any, **__: Any) -> Any:
            raise Overloaded

        monkeypatch.setattr(server.services.store.jobs, "insert", insert)
        async with asyncio.timeout(LIMIT_SECONDS):
            headers = {"idempotency-key": "one"}
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"), headers=headers)
        assert status == 503
        back.set()

        async def look() -> bool | None:
            meter = await the_only_user_has(server)
            return (not meter.pending and not meter.entries) or None

        assert await until(look)


@contextlib.asynccontextmanager
async def quotas_away(server: Live, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Room is had and cannot be given back, until what this yields is set."""
    settle, back = server.services.store.quotas.settle, asyncio.Event()

    async def settled(*room: Any, **more: Any) -> None:
        if not back.is_set():
            raise Overloaded
        await settle(*room, **more)

    monkeypatch.setattr(server.services.store.quotas, "settle", settled)
    monkeypatch.setattr("signoff.work.inference.reserve.SETTLE_SECONDS", 0.01, raising=False)
    yield back
    back.set()


async def test_a_slot_is_held_until_the_end_of_the_stream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, parallel=1)
        token = await server.token()
        asking = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "stuck", stream=True))
        )
        await fake.until_stuck()
        status, headers, told = await asked(server, token)
        assert (status, told["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        asking.cancel()


async def test_one_who_asks_once_at_a_time_is_never_refused_for_being_too_many(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, parallel=1)
        token = await server.token()
        for stream in [False, True] * 20:
            body = chat("hello", stream=stream)
            status, told = await server.ask("POST", "/v1/chat/completions", token, json=body)
            assert status == 200, told


async def test_nobody_holds_a_slot_while_a_person_thinks(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("careful", review="always")
        await limit(server, parallel=1)
        token, reviewer = await server.token(), await server.token("reviewer")
        waiting = asyncio.ensure_future(asked(server, token, "held", "careful"))

        async def look() -> str | None:
            held = await server.services.store.jobs.list(JobFilter(status="human"))
            return held[0].id if held else None

        job_id = await until(look)
        assert (await asked(server, token))[0] == 200
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success"})
        status, _, answer = await waiting
        assert (status, words(answer)) == (200, "held")
        assert (await the_only_user_has(server)).pending == ()


async def test_a_call_that_joins_another_takes_nothing(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=3)
        token = await server.token()
        for _ in range(5):
            headers = {"idempotency-key": "one"}
            status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"), headers=headers)
            assert status == 200, told
        assert sum(entry.requests for entry in (await the_only_user_has(server)).entries) == 1


async def test_the_predict_door_says_so_in_its_own_words(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, "all", "echo", requests_per_minute=1)
        headers = {"authorization": f"Bearer {await server.token()}"}
        for expected in (200, 429):
            async with server.http.post(
                server.url + "/post/predict?id=echo", headers=headers, data=b'"hi"'
            ) as response:
                assert response.status == expected
                told = await response.json()
        assert told.keys() == {"content"}
        assert response.headers["x-signoff-code"] == "rate_limit_exceeded"
        assert 0 < int(response.headers["retry-after"]) <= 60


async def test_an_accepted_job_waits_for_room_and_loses_no_attempt(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, "user:ann@example.com", requests_per_minute=1)
        ids = []
        for number in range(20):
            _, job = await server.ask("POST", "/api/jobs", ann, json={"body": chat(str(number)), "target": "echo"})
            ids.append(job["job_id"])
        # then another user's job is not behind them
        _, other = await server.ask("POST", "/api/jobs", ben, json={"body": chat("mine"), "target": "echo"})
        await server.job_when(ben, other["job_id"], lambda job: job["status"] == "success")

        async def put_off() -> int | None:
            jobs = await server.services.store.jobs.list(
                JobFilter(user_id=(await server.services.store.jobs.get(ids[0])).user_id)
            )  # type: ignore[union-attr]
            waiting = [
                job
                for job in jobs
                if job.status == "bot" and job.lease is None and job.due_at > job.created_at + SECOND
            ]
            assert all((job.attempt, job.error) == (0, None) for job in waiting)
            return len(waiting) if len(waiting) == 19 else None

        assert await until(put_off) == 19


async def test_an_accepted_job_loses_no_attempt_while_the_database_does_not_look_at_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server:
        await limit(server, parallel=5)
        token = await server.token()
        reserve, refused = server.services.store.quotas.reserve, list[str]()

        async def reserved(wish: ReservationRequest) -> Any:
            if not refused:
                refused.append(wish.id)
                raise Overloaded
            return await reserve(wish)

        monkeypatch.setattr(server.services.store.quotas, "reserve", reserved)
        _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi"), "target": "echo"})
        await server.job_when(token, job["job_id"], lambda job: job["status"] == "success")

        events = await server.services.store.jobs.events(job["job_id"])
        assert refused == [job["job_id"]]
        assert [event.verb for event in events] == ["submit", "claim", "release", "claim", "succeed"]
        assert (await server.services.store.jobs.get(job["job_id"])).attempt == 1  # type: ignore[union-attr]


async def test_a_job_that_is_too_large_for_its_limit_fails_and_says_so(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=10)
        token = await server.token()
        _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("x", max_tokens=11), "target": "echo"})
        ended = await server.job_when(token, job["job_id"], lambda job: job["status"] == "fail")
        assert (ended["error"]["code"], ended["error"]["status"]) == ("rate_limit_exceeded", 429)


async def test_a_users_own_limit_stands_in_the_place_of_the_one_for_each(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, requests_per_minute=1)
        await limit(server, "user:ann@example.com", requests_per_minute=2)
        assert [(await asked(server, ann))[0] for _ in range(3)] == [200, 200, 429]
        assert [(await asked(server, ben))[0] for _ in range(2)] == [200, 429]


async def test_a_token_a_model_and_all_together_have_limits_of_their_own(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("other")
        one, two = await server.token(), await server.token()
        _, told = await server.ask("GET", "/api/limits", one)
        await limit(server, f"token:{told['you']['token']}", requests_per_minute=1)
        await limit(server, "all", "other", requests_per_minute=2)
        assert [(await asked(server, one))[0] for _ in range(2)] == [200, 429]
        assert [(await asked(server, two, model="other"))[0] for _ in range(3)] == [200, 200, 429]
        assert (await asked(server, two))[0] == 200


async def test_limits_are_the_admins_and_everybody_sees_only_their_own(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, parallel=9)
        await limit(server, "all", requests_per_minute=1000)
        await limit(server, "user:ann@example.com", requests_per_minute=10, tokens_per_day=500)
        await asked(server, ann)
        await asked(server, ben)
        # then an admin sees all, and what is used
        admin = await server.token("admin")
        _, told = await server.ask("GET", "/api/limits", admin)
        found = {one["who"]: one for one in told["data"]}
        assert found.keys() == {"each", "all", "user:ann@example.com"}
        assert found["all"]["used"]["requests_per_minute"] == 2
        assert (found["each"]["used"], found["each"]["parallel"]) == (None, 9)
        # and a user what is theirs
        _, told = await server.ask("GET", "/api/limits", ann)
        assert [one["who"] for one in told["data"]] == ["user:ann@example.com"]
        assert told["data"][0]["used"]["requests_per_minute"] == 1
        assert told["data"][0]["used"]["tokens_per_day"] > 0
        _, told = await server.ask("GET", "/api/limits", ben)
        assert [(one["who"], one["used"]["parallel"]) for one in told["data"]] == [("each", 0)]
        # and changes nothing
        for token, expected in ((ann, 403), (await server.token("reviewer"), 403), (None, 401)):
            for who in ("all", "user:ann@example.com", "user:nobody@example.com"):
                assert (await server.ask("PUT", f"/api/limits/{who}", token, json={"parallel": 1}))[0] == expected
                assert (await server.ask("DELETE", f"/api/limits/{who}", token))[0] == expected
        assert (await server.ask("GET", "/api/limits", None))[0] == 401
        # when one is removed, there is none
        assert (await server.ask("DELETE", "/api/limits/all", admin))[0] == 204
        assert (await server.ask("DELETE", "/api/limits/all", admin))[0] == 404


@pytest.mark.parametrize(
    ("who", "numbers", "status"),
    [
        ("everyone", {"parallel": 1}, 400),
        ("token:x", {"parallel": 1}, 400),
        ("user:nobody@example.com", {"parallel": 1}, 404),
        ("all", {}, 400),
        ("all", {"parallel": -1}, 400),
        ("all", {"parallel": 10**30}, 400),
        ("all", {"parallel": "many"}, 400),
        ("all", {"colour": 1}, 400),
    ],
)
async def test_what_describes_no_limit_is_refused(
    who: str, numbers: dict[str, Any], status: int, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        found, told = await server.ask("PUT", f"/api/limits/{who}", await server.token("admin"), json=numbers)
        assert (found, told["status"]) == (status, status)
        assert await server.services.store.quotas.limits() == []


async def test_a_budget_of_dollars_is_reserved_and_spent_by_the_models_price(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a model that costs a dollar a token
        admin, token = await server.token("admin"), await server.token()
        price = {"model": "echo", "input": "1000000", "output": "1000000"}
        assert (await server.ask("PUT", "/api/prices", admin, json=price))[0] == 200
        told = {"cost_per_day": "100", "parallel": 9}
        assert (await server.ask("PUT", "/api/limits/each", admin, json=told))[1]["cost_per_day"] == "100"
        # then one that may cost more is too large, and one that fits is admitted
        status, headers, refused = await asked(server, token, max_tokens=200)
        assert (status, refused["error"]["code"], headers["x-should-retry"]) == (429, "insufficient_quota", "false")
        assert (await asked(server, token, model="echo/tokens=60", max_tokens=60))[0] == 200
        # and what it cost is what its job says
        [job] = await server.services.store.jobs.list(JobFilter(status="success"))
        assert (await the_only_user_has(server)).day.cost == job.cost_nanodollars
        status, _, refused = await asked(server, token, max_tokens=60)
        assert (status, refused["error"]["code"]) == (429, "insufficient_quota")
        assert "100 dollars per day" in refused["error"]["message"]


async def test_a_cached_answer_takes_nothing(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=1, tokens_per_day=1000)
        token = await server.token()
        for _ in range(3):
            status, headers, _ = await asked(server, token, temperature=0)
            assert status == 200
        assert headers["x-signoff-cache"] == "hit"
        assert sum(entry.requests for entry in (await the_only_user_has(server)).entries) == 1
