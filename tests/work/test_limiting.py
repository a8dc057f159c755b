"""Limits at the doors: refused requests say when to retry, and unused reservations are released."""

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
from signoff.core.counters import Counter
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.limits import ReservationRequest
from signoff.core.times import SECOND_US
from signoff.errors import Overloaded
from signoff.stores.limits_schema import counters
from support.ages import grow_older
from support.live_server import Live, chat, client, live, until, words

pytestmark = pytest.mark.anyio


async def limit(server: Live, who: str = "each", model: str | None = None, **numbers: int) -> None:
    """Set a limit as an admin."""
    query = "" if model is None else f"?model={model}"
    admin = await server.token("admin")
    status, payload = await server.ask("PUT", f"/api/limits/{who}{query}", admin, json=numbers)
    assert status == 200, payload


async def counter_of(server: Live, name: str) -> Counter:
    """Return the current counter with that name."""
    return (await server.services.store.limits.counters([name])).get(name, Counter())


async def only_counter(server: Live) -> Counter:
    """Return the counter of the only user who is limited."""
    names = await server.services.store._database.read(
        lambda conn, _: list(conn.execute(sa.select(counters.c.name)).scalars())
    )  # type: ignore[attr-defined]
    assert len(names) == 1
    return await counter_of(server, names[0])


async def send_chat(server: Live, token: str, text: str = "hello", model: str = "echo", **more: Any) -> Any:
    """Send a chat request; return the status, the headers and the JSON."""
    headers = {"authorization": f"Bearer {token}"}
    body = chat(text, model, **more)
    async with server.http.post(server.url + "/v1/chat/completions", headers=headers, json=body) as response:
        return (
            response.status,
            response.headers,
            await response.json(content_type=None) if response.ok else json.loads(await response.read()),
        )


async def test_every_limited_response_has_the_remaining_limits_in_its_headers(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=100, tokens_per_minute=10_000)
        token = await server.token()
        _, headers, _ = await send_chat(server, token, "x" * 40, max_tokens=90)
        limits = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
        assert limits == {
            "x-ratelimit-limit-requests": "100",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "10000",
            "x-ratelimit-remaining-tokens": "9900",
            "x-ratelimit-reset-tokens": "1m0s",
        }
        # then unused reserved tokens are available again
        _, headers, answer = await send_chat(server, token, "x" * 40, max_tokens=90)
        assert int(headers["x-ratelimit-remaining-tokens"]) == 10_000 - 100 - answer["usage"]["total_tokens"]
        assert headers["x-ratelimit-remaining-requests"] == "98"


async def test_responses_without_a_limit_have_no_limit_headers(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, "user:admin@example.com", requests_per_minute=1)
        status, headers, _ = await send_chat(server, await server.token())
        assert status == 200
        assert not [name for name in headers if name.startswith("x-ratelimit")]


async def test_a_request_over_the_limit_gets_a_429_with_the_time_to_retry(tmp_path: Path) -> None:
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
        assert 20_000 < int(headers["retry-after-ms"]) <= 40_000
        assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
        # then no job was created for the refused request
        assert await server.services.store.jobs.count(JobFilter(), at_most=10_000) == 1


async def test_a_retry_of_the_official_client_waits_for_retry_after_and_succeeds(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=1) as official:
        await limit(server, requests_per_minute=1)
        await official.chat.completions.create(**chat("one"))
        await grow_older(server.services.store, 58.5)
        # when the request is refused, then its retry succeeds once `retry-after` has passed
        answer = await official.chat.completions.create(**chat("two"))
        assert answer.choices[0].message.content == "two"


async def test_an_exhausted_budget_is_reported_as_openai_does_and_not_retried(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=5) as official:
        await limit(server, tokens_per_month=20)
        await official.chat.completions.create(**chat("one", "echo/tokens=50"))
        with pytest.raises(openai.RateLimitError) as raised:
            await official.chat.completions.create(**chat("two"))
        assert (raised.value.code, raised.value.type) == ("insufficient_quota", "insufficient_quota")
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert 0 < int(raised.value.response.headers["retry-after"]) <= 31 * 24 * 3600


async def test_a_request_larger_than_its_limit_is_told_not_to_retry(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=100)
        status, headers, payload = await send_chat(server, await server.token(), max_tokens=101)
        assert (status, headers["x-should-retry"], payload["error"]["code"]) == (429, "false", "rate_limit_exceeded")
        assert "retry-after" not in headers
        assert (await send_chat(server, await server.token()))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_tokens_that_were_used_are_counted(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=10_000, tokens_per_day=10_000, parallel=5)
        token = await server.token()
        body = chat("hello", "echo/tokens=50", max_tokens=500, stream=stream, stream_options={"include_usage": True})
        await server.ask("POST", "/v1/chat/completions", token, json=body)
        [job] = await server.services.store.jobs.list(JobFilter())
        assert job.usage is not None
        counter = await only_counter(server)
        assert [entry.tokens for entry in counter.entries] == [job.usage.total_tokens]
        assert (counter.day.tokens, counter.pending) == (job.usage.total_tokens, ())


async def test_a_failed_request_releases_its_tokens(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=10, tokens_per_minute=1000, tokens_per_day=1000, parallel=1)
        token = await server.token()
        assert (await send_chat(server, token, model="echo/status=500", max_tokens=900))[0] == 500
        counter = await only_counter(server)
        assert [(entry.requests, entry.tokens) for entry in counter.entries] == [(1, 0)]
        assert (counter.day.tokens, counter.pending) == (0, ())


async def test_a_client_that_leaves_during_a_stream_is_charged_for_the_tokens_so_far(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, tokens_per_minute=10_000, parallel=1)
        token = await server.token()
        body = chat("hello", "stuck", stream=True, max_tokens=5000)
        task = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=body))
        await fake.until_stuck()
        assert len((await only_counter(server)).pending) == 1
        task.cancel()

        async def settled_counter() -> Counter | None:
            counter = await only_counter(server)
            return None if counter.pending else counter

        counter = await until(settled_counter)
        assert 0 < sum(entry.tokens for entry in counter.entries) < 100


async def test_a_call_that_its_owner_cancels_is_charged_for_the_tokens_so_far(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_after_seconds=0.05) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, tokens_per_minute=10_000, tokens_per_day=10_000)
        token = await server.token()
        body = chat("hello", "stuck", stream=True, max_tokens=5000)
        task = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=body))

        async def running_job_id() -> str | None:
            jobs = await server.services.store.jobs.list(JobFilter(status="bot"))
            return jobs[0].id if jobs and fake.stuck.is_set() else None

        job_id = await until(running_job_id)
        assert (await server.ask("DELETE", f"/api/jobs/{job_id}", token))[0] == 200
        await task
        counter = await only_counter(server)
        assert 0 < sum(entry.tokens for entry in counter.entries) < 100
        assert counter.day.tokens == sum(entry.tokens for entry in counter.entries)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_does_not_wait_for_an_unavailable_database_and_is_counted_later(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server, failing_settle(server, monkeypatch) as recovered:
        await limit(server, tokens_per_day=10_000)
        token = await server.token()
        async with asyncio.timeout(LIMIT_SECONDS):
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", stream=stream))
        assert status == 200
        recovered.set()

        async def settled_counter_and_job() -> tuple[Counter, Job] | None:
            counter, jobs = await only_counter(server), await server.services.store.jobs.list(JobFilter())
            return (counter, jobs[0]) if jobs and not counter.pending else None

        counter, job = await until(settled_counter_and_job)
        assert counter.day.tokens == job.prompt_tokens + job.completion_tokens > 0


async def test_a_failed_insert_is_reported_though_the_reservation_cannot_be_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server, failing_settle(server, monkeypatch) as recovered:
        await limit(server, tokens_per_day=10_000, requests_per_minute=5)
        token = await server.token()

        async def insert(*_: Any, **__: Any) -> Any:
            raise Overloaded

        monkeypatch.setattr(server.services.store.jobs, "insert", insert)
        async with asyncio.timeout(LIMIT_SECONDS):
            headers = {"idempotency-key": "one"}
            status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"), headers=headers)
        assert status == 503
        recovered.set()

        async def is_released() -> bool | None:
            counter = await only_counter(server)
            return (not counter.pending and not counter.entries) or None

        assert await until(is_released)


@contextlib.asynccontextmanager
async def failing_settle(server: Live, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Make the settlement of reservations fail until the event that this yields is set."""
    settle, recovered = server.services.store.limits.settle, asyncio.Event()

    async def settle_or_fail(*reservation: Any, **more: Any) -> None:
        if not recovered.is_set():
            raise Overloaded
        await settle(*reservation, **more)

    monkeypatch.setattr(server.services.store.limits, "settle", settle_or_fail)
    monkeypatch.setattr("signoff.work.inference.reserve.SETTLE_SECONDS", 0.01, raising=False)
    yield recovered
    recovered.set()


async def test_a_slot_is_held_until_the_end_of_the_stream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("stuck", kind="openai", url=fake.at("hang-mid-stream"))
        await limit(server, parallel=1)
        token = await server.token()
        task = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "stuck", stream=True))
        )
        await fake.until_stuck()
        status, headers, payload = await send_chat(server, token)
        assert (status, payload["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        task.cancel()


async def test_sequential_requests_are_never_refused_by_a_parallel_limit_of_one(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, parallel=1)
        token = await server.token()
        for stream in [False, True] * 20:
            body = chat("hello", stream=stream)
            status, payload = await server.ask("POST", "/v1/chat/completions", token, json=body)
            assert status == 200, payload


async def test_a_held_answer_occupies_no_slot_during_its_review(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("careful", review="always")
        await limit(server, parallel=1)
        token, reviewer = await server.token(), await server.token("reviewer")
        task = asyncio.ensure_future(send_chat(server, token, "held", "careful"))

        async def held_job_id() -> str | None:
            held = await server.services.store.jobs.list(JobFilter(status="human"))
            return held[0].id if held else None

        job_id = await until(held_job_id)
        assert (await send_chat(server, token))[0] == 200
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success"})
        status, _, answer = await task
        assert (status, words(answer)) == (200, "held")
        assert (await only_counter(server)).pending == ()


async def test_a_call_that_joins_another_is_not_counted(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=3)
        token = await server.token()
        for _ in range(5):
            headers = {"idempotency-key": "one"}
            status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi"), headers=headers)
            assert status == 200, payload
        assert sum(entry.requests for entry in (await only_counter(server)).entries) == 1


async def test_the_predict_door_reports_a_limit_in_its_own_format(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, "all", "echo", requests_per_minute=1)
        headers = {"authorization": f"Bearer {await server.token()}"}
        for expected in (200, 429):
            async with server.http.post(
                server.url + "/post/predict?id=echo", headers=headers, data=b'"hi"'
            ) as response:
                assert response.status == expected
                payload = await response.json()
        assert payload.keys() == {"content"}
        assert response.headers["x-signoff-code"] == "rate_limit_exceeded"
        assert 0 < int(response.headers["retry-after"]) <= 60


async def test_an_accepted_job_waits_for_its_limit_and_loses_no_attempt(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, "user:ann@example.com", requests_per_minute=1)
        ids = []
        for number in range(20):
            _, job = await server.ask("POST", "/api/jobs", ann, json={"body": chat(str(number)), "target": "echo"})
            ids.append(job["job_id"])
        # then another user's job does not wait for them
        _, other = await server.ask("POST", "/api/jobs", ben, json={"body": chat("mine"), "target": "echo"})
        await server.job_when(ben, other["job_id"], lambda job: job["status"] == "success")

        async def count_postponed() -> int | None:
            jobs = await server.services.store.jobs.list(
                JobFilter(user_id=(await server.services.store.jobs.get(ids[0])).user_id)
            )  # type: ignore[union-attr]
            postponed = [
                job
                for job in jobs
                if job.status == "bot" and job.lease is None and job.due_at > job.created_at + SECOND_US
            ]
            assert all((job.attempt, job.error) == (0, None) for job in postponed)
            return len(postponed) if len(postponed) == 19 else None

        assert await until(count_postponed) == 19


async def test_an_accepted_job_loses_no_attempt_while_the_store_of_limits_is_overloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path) as server:
        await limit(server, parallel=5)
        token = await server.token()
        reserve, refused = server.services.store.limits.reserve, list[str]()

        async def reserve_or_fail(request: ReservationRequest) -> Any:
            if not refused:
                refused.append(request.id)
                raise Overloaded
            return await reserve(request)

        monkeypatch.setattr(server.services.store.limits, "reserve", reserve_or_fail)
        _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi"), "target": "echo"})
        await server.job_when(token, job["job_id"], lambda job: job["status"] == "success")

        events = await server.services.store.jobs.events(job["job_id"])
        assert refused == [job["job_id"]]
        assert [event.verb for event in events] == ["submit", "claim", "release", "claim", "succeed"]
        assert (await server.services.store.jobs.get(job["job_id"])).attempt == 1  # type: ignore[union-attr]


async def test_a_job_that_is_larger_than_its_limit_fails_with_that_error(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, tokens_per_minute=10)
        token = await server.token()
        _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("x", max_tokens=11), "target": "echo"})
        ended = await server.job_when(token, job["job_id"], lambda job: job["status"] == "fail")
        assert (ended["error"]["code"], ended["error"]["status"]) == ("rate_limit_exceeded", 429)


async def test_a_limit_of_one_user_replaces_the_limit_of_each_user(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, requests_per_minute=1)
        await limit(server, "user:ann@example.com", requests_per_minute=2)
        assert [(await send_chat(server, ann))[0] for _ in range(3)] == [200, 200, 429]
        assert [(await send_chat(server, ben))[0] for _ in range(2)] == [200, 429]


async def test_tokens_and_models_have_limits_of_their_own(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("other")
        one, two = await server.token(), await server.token()
        _, payload = await server.ask("GET", "/api/limits", one)
        await limit(server, f"token:{payload['you']['token']}", requests_per_minute=1)
        await limit(server, "all", "other", requests_per_minute=2)
        assert [(await send_chat(server, one))[0] for _ in range(2)] == [200, 429]
        assert [(await send_chat(server, two, model="other"))[0] for _ in range(3)] == [200, 200, 429]
        assert (await send_chat(server, two))[0] == 200


async def test_only_admins_manage_limits_and_users_see_only_their_own(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, ben = await server.token("user", "ann@example.com"), await server.token("user", "ben@example.com")
        await limit(server, parallel=9)
        await limit(server, "all", requests_per_minute=1000)
        await limit(server, "user:ann@example.com", requests_per_minute=10, tokens_per_day=500)
        await send_chat(server, ann)
        await send_chat(server, ben)
        # then an admin sees all limits and their use
        admin = await server.token("admin")
        _, payload = await server.ask("GET", "/api/limits", admin)
        limits = {entry["who"]: entry for entry in payload["data"]}
        assert limits.keys() == {"each", "all", "user:ann@example.com"}
        assert limits["all"]["used"]["requests_per_minute"] == 2
        assert (limits["each"]["used"], limits["each"]["parallel"]) == (None, 9)
        # and a user sees the limits that apply to them
        _, payload = await server.ask("GET", "/api/limits", ann)
        assert [entry["who"] for entry in payload["data"]] == ["user:ann@example.com"]
        assert payload["data"][0]["used"]["requests_per_minute"] == 1
        assert payload["data"][0]["used"]["tokens_per_day"] > 0
        _, payload = await server.ask("GET", "/api/limits", ben)
        assert [(entry["who"], entry["used"]["parallel"]) for entry in payload["data"]] == [("each", 0)]
        # and cannot change them
        for token, expected in ((ann, 403), (await server.token("reviewer"), 403), (None, 401)):
            for who in ("all", "user:ann@example.com", "user:nobody@example.com"):
                assert (await server.ask("PUT", f"/api/limits/{who}", token, json={"parallel": 1}))[0] == expected
                assert (await server.ask("DELETE", f"/api/limits/{who}", token))[0] == expected
        assert (await server.ask("GET", "/api/limits", None))[0] == 401
        # when a limit is removed, it no longer exists
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
async def test_an_invalid_limit_is_refused(who: str, numbers: dict[str, Any], status: int, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        actual, payload = await server.ask("PUT", f"/api/limits/{who}", await server.token("admin"), json=numbers)
        assert (actual, payload["status"]) == (status, status)
        assert await server.services.store.limits.all() == []


async def test_a_budget_in_dollars_is_charged_by_the_price_of_the_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a model that costs a dollar a token
        admin, token = await server.token("admin"), await server.token()
        price = {"model": "echo", "input": "1000000", "output": "1000000"}
        assert (await server.ask("PUT", "/api/prices", admin, json=price))[0] == 200
        limits = {"cost_per_day": "100", "parallel": 9}
        assert (await server.ask("PUT", "/api/limits/each", admin, json=limits))[1]["cost_per_day"] == "100"
        # then a request that may cost more than the budget is refused, and one within it is admitted
        status, headers, payload = await send_chat(server, token, max_tokens=200)
        assert (status, payload["error"]["code"], headers["x-should-retry"]) == (429, "insufficient_quota", "false")
        assert (await send_chat(server, token, model="echo/tokens=60", max_tokens=60))[0] == 200
        # and the counter has the cost of the job
        [job] = await server.services.store.jobs.list(JobFilter(status="success"))
        assert (await only_counter(server)).day.cost == job.cost_nanodollars
        status, _, payload = await send_chat(server, token, max_tokens=60)
        assert (status, payload["error"]["code"]) == (429, "insufficient_quota")
        assert "100 dollars per day" in payload["error"]["message"]


async def test_a_cached_answer_is_not_counted(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await limit(server, requests_per_minute=1, tokens_per_day=1000)
        token = await server.token()
        for _ in range(3):
            status, headers, _ = await send_chat(server, token, temperature=0)
            assert status == 200
        assert headers["x-signoff-cache"] == "hit"
        assert sum(entry.requests for entry in (await only_counter(server)).entries) == 1
