"""The response cache: cache hits, the users they are shared with, and answers that are never cached."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes.numbering import NumberingModel
from fakes.tcp_proxy import TcpProxy
from fakes.webhook_receiver import SECRET, WebhookReceiver
from signoff.core.cache import CacheFilter
from signoff.core.model import Model
from signoff.runtime import response_cache
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.registry import register_model
from support.live_server import Live, chat, live, until
from support.stores import together

pytestmark = pytest.mark.anyio

# The result of a request at a door: the status, the text of the answer and `x-signoff-cache`.
DoorResult = tuple[int, str | None, str | None]
Door = Callable[..., Awaitable[DoorResult]]
CHAT = "/v1/chat/completions"


async def ask(server: Live, token: str, path: str, body: Any, **headers: str) -> tuple[int, Any, str | None]:
    """Send a request; return the status, the JSON and `x-signoff-cache`."""
    all_headers = {"authorization": f"Bearer {token}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    async with server.http.post(server.url + path, json=body, headers=all_headers) as response:
        return response.status, await response.json(), response.headers.get("x-signoff-cache")


async def at_openai(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer at the OpenAI chat endpoint."""
    status, payload, cache = await ask(server, token, CHAT, chat(text, "m", temperature=0), **headers)
    return status, payload["choices"][0]["message"]["content"] if status == 200 else None, cache


async def at_predict(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer at `/post/predict`."""
    status, payload, cache = await ask(server, token, "/post/predict?id=m", chat(text, "m", temperature=0), **headers)
    return status, payload["choices"][0]["message"]["content"] if status == 200 else None, cache


async def at_cached(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer at the cached door."""
    status, payload, cache = await ask(server, token, f"/api/openai{CHAT}", chat(text, "m"), **headers)
    if status != 200:
        return status, None, cache
    assert payload["cache_hit"] == (cache == "hit")
    return status, payload["response"], cache


async def at_generate(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer at `/generate`."""
    request = {"meta": {"model": "m", "temperature": 0}, "content": text}
    status, payload, cache = await ask(server, token, "/generate", request, **headers)
    return status, payload.get("content"), cache


async def at_chat_completion(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer at `/chat_completion`."""
    request = {"meta": {"model": "m", "temperature": 0}, "messages": chat(text)["messages"]}
    status, payload, cache = await ask(server, token, "/chat_completion", request, **headers)
    return status, payload.get("content"), cache


async def at_native(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer as a job at `/api/jobs`."""
    request = {"target": "m", "body": chat(text, "m", temperature=0)}
    _, job, _ = await ask(server, token, "/api/jobs", request, **headers)
    auth_headers = {"authorization": f"Bearer {token}"}
    async with server.http.get(f"{server.url}/api/jobs/{job['job_id']}?wait=10", headers=auth_headers) as response:
        job, cache = await response.json(), response.headers["x-signoff-cache"]
    assert job["cache"] == cache
    content = job["response"]["choices"][0]["message"]["content"] if job["response"] else None
    return (200 if job["status"] == "success" else job["error"]["status"]), content, cache


async def at_enqueue(server: Live, token: str, text: str = "hello", **headers: str) -> DoorResult:
    """Request an answer as a job at `/enqueue`."""
    _, payload, _ = await ask(server, token, "/enqueue", chat(text, "m", temperature=0), **headers)
    job = await server.job_when(token, payload["job_id"], lambda job: job["status"] in {"success", "fail"})
    content = job["response"]["choices"][0]["message"]["content"] if job["response"] else None
    return (200 if job["status"] == "success" else job["error"]["status"]), content, job["cache"]


DOORS: dict[str, Door] = {
    "openai": at_openai,
    "predict": at_predict,
    "cached": at_cached,
    "generate": at_generate,
    "chat_completion": at_chat_completion,
    "native": at_native,
    "enqueue": at_enqueue,
}


DEFAULT_LOOKUP_TIMEOUT_SECONDS = response_cache.LOOKUP_TIMEOUT_SECONDS


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the time limits of the cache, so that a busy machine causes no misses."""
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(response_cache, "STORE_WAIT_SECONDS", 60)


@pytest.fixture(params=["sql", "postgres", "redis", "memory"])
def cache_settings(request: pytest.FixtureRequest, prefix: str) -> dict[str, Any]:
    """Return the settings of a server with that kind of cache."""
    match request.param:
        case "postgres":
            return {"database_url": request.getfixturevalue("postgres_url")}
        case "redis":
            return {"cache": "redis", "redis_url": request.getfixturevalue("redis_url"), "redis_prefix": prefix}
        case kind:
            return {"cache": kind}


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, NumberingModel]]:
    """Yield a server and its model `m`, whose answers are numbered. Nothing is held unless the model says so."""
    async with NumberingModel() as upstream, live(tmp_path, **({"enqueue_review": "never"} | settings)) as server:
        await server.model("m", kind="openai", url=upstream.url)
        yield server, upstream


async def held_job(server: Live, reviewer: str) -> dict[str, Any]:
    """Wait for the only held job and return it."""

    async def find_held() -> dict[str, Any] | None:
        _, page = await server.ask("GET", "/api/jobs?status=human", reviewer)
        return page["data"][0] if page["data"] else None

    return await until(find_held)


# Hits


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_repeats_a_signed_off_answer(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert await DOORS[door](server, token) == (200, "answer 1", "miss")
        await until(lambda: is_cached(server))  # a job may have ended a moment before its answer is in the cache
        assert await DOORS[door](server, token) == (200, "answer 1", "hit")
        assert await DOORS[door](server, token, "other") == (200, "answer 2", "miss")
        assert upstream.calls == 2


async def is_cached(server: Live) -> bool | None:
    """Return True if the cache has an entry; else None."""
    return (await server.services.caches.responses.size(CacheFilter())).entries > 0 or None


async def test_every_cache_repeats_an_answer_and_shared_caches_do_in_another_process(
    cache_settings: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(tmp_path, **cache_settings) as (server, upstream):
        token = await server.token()
        assert await at_openai(server, token) == (200, "answer 1", "miss")
        assert await at_openai(server, token) == (200, "answer 1", "hit")
        assert await at_cached(server, token, "eye") == (200, "answer 2", "miss")
        async with live(tmp_path, **cache_settings) as other:
            is_shared = cache_settings.get("cache") != "memory"
            expected = (200, "answer 2", "hit") if is_shared else (200, "answer 3", "miss")
            assert await at_cached(other, token, "eye") == expected
        assert upstream.calls == (2 if is_shared else 3)


async def test_equal_requests_at_different_doors_share_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert await at_openai(server, token) == (200, "answer 1", "miss")
        assert await at_native(server, token) == (200, "answer 1", "hit")
        assert await at_enqueue(server, token) == (200, "answer 1", "hit")
        body = chat("hello", "m", temperature=0)
        assert (await ask(server, token, f"/api/openai{CHAT}", body))[1] == {"response": "answer 1", "cache_hit": True}
        assert (await ask(server, token, f"/openai{CHAT}/", body))[2] == "hit"
        assert upstream.calls == 1


async def test_only_requests_with_temperature_zero_or_a_seed_are_cached_by_default(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        for more in ({}, {"temperature": 0.7}, {"temperature": 1e-9}):
            for _ in range(2):
                assert (await ask(server, token, CHAT, chat("x", "m", **more)))[2] == "bypass"
        assert upstream.calls == 6
        for number, more in enumerate([{"temperature": 0.0}, {"seed": 5}, {"seed": 6, "temperature": 2}]):
            assert [(await ask(server, token, CHAT, chat("x", "m", **more)))[2] for _ in range(2)] == ["miss", "hit"]
            assert upstream.calls == 7 + number


async def test_the_cache_rule_of_a_model_precedes_that_of_a_token_and_that_of_a_door(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        user = await create_user(server.services, "rules@example.com", "user")
        plain, never, always = [
            await create_token(server.services, user, cache=rule) for rule in (None, "never", "always")
        ]  # type: ignore[arg-type]
        for name, rule in (("always", "always"), ("never", "never")):
            await server.model(name, kind="openai", url=upstream.url, cache=rule)

        async def states(token: str, model: str, path: str = CHAT, **more: Any) -> list[str | None]:
            return [(await ask(server, token, path, chat(path + token, model, **more)))[2] for _ in range(2)]

        cached, bypassed = ["miss", "hit"], ["bypass", "bypass"]
        assert await states(plain, "m") == bypassed
        assert await states(always, "m") == cached
        assert await states(never, "m", temperature=0) == bypassed
        assert await states(never, "m", f"/api/openai{CHAT}") == bypassed
        assert await states(plain, "always") == await states(never, "always") == cached
        assert await states(plain, "never", f"/api/openai{CHAT}") == await states(always, "never", seed=1) == bypassed


async def test_a_cache_hit_is_a_job_without_attempts_and_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token("admin")
        for _ in range(2):
            await at_openai(server, token)

        async def two_jobs() -> list[dict[str, Any]] | None:
            _, page = await server.ask("GET", "/api/jobs", token)
            return page["data"] if len(page["data"]) == 2 else None

        hit, miss = await until(two_jobs)
        assert (miss["cache"], hit["cache"]) == ("miss", "hit")
        assert hit["cache_key"] == miss["cache_key"]
        assert hit["response"] == miss["response"]
        assert (hit["status"], hit["attempt"], hit["round"]) == ("success", 0, 0)
        _, events = await server.ask("GET", f"/api/jobs/{hit['job_id']}/events", token)
        assert [(event["verb"], event["data"]["moves"]) for event in events["data"]] == [("hit", ["hit"])]
        job = await server.services.store.jobs.get(hit["job_id"])
        assert job is not None
        assert job.usage is not None
        assert job.usage.total_tokens == 0


async def test_a_cache_hit_sends_its_webhook(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, webhook_allow=["127.0.0.1"]) as (server, _),
        WebhookReceiver() as receiver,
    ):
        token = await server.token()
        await at_native(server, token)
        deliver = {"url": receiver.url, "secret": SECRET}
        request = {"target": "m", "body": chat("hello", "m", temperature=0), "deliver": deliver}
        status, job, cache = await ask(server, token, "/api/jobs", request)
        assert (status, job["status"], cache) == (202, "success", "hit")
        event = json.loads((await receiver.received())[0].body)
        assert (event["type"], event["data"]["job_id"]) == ("job.succeeded", job["job_id"])


async def test_a_job_with_a_later_due_time_is_not_answered_from_the_cache_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_native(server, token)
        request = {"target": "m", "body": chat("hello", "m", temperature=0), "due_at": "2999-01-01T00:00:00Z"}
        assert (await ask(server, token, "/api/jobs", request))[1]["status"] == "bot"


# Streams


@pytest.fixture
async def official(tmp_path: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, NumberingModel]]:
    """Yield the official client of a server, and the model behind it."""
    async with (
        serving(tmp_path) as (server, upstream),
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=await server.token(), max_retries=0) as client,
    ):
        yield client, upstream


async def complete(client: openai.AsyncOpenAI, text: str) -> tuple[str | None, int]:
    """Request a plain answer; return its text and its tokens."""
    completion = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], temperature=0
    )
    assert completion.usage is not None
    assert (completion.object, completion.choices[0].finish_reason) == ("chat.completion", "stop")
    return completion.choices[0].message.content, completion.usage.total_tokens


async def complete_streamed(client: openai.AsyncOpenAI, text: str, *, usage: bool) -> tuple[str, int | None]:
    """Request a streamed answer; return its text and, with `usage`, its tokens."""
    content, tokens, finish_reasons = "", None, list[str]()
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    async for chunk in await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], temperature=0, stream=True, **more
    ):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish_reasons += [choice.finish_reason] if choice.finish_reason else []
        tokens = chunk.usage.total_tokens if chunk.usage else tokens
    assert finish_reasons == ["stop"]
    return content, tokens


async def test_a_plain_answer_is_repeated_as_a_stream(official: tuple[openai.AsyncOpenAI, NumberingModel]) -> None:
    client, upstream = official
    assert await complete(client, "hello") == ("answer 1", 7)
    assert await complete_streamed(client, "hello", usage=True) == ("answer 1", 7)
    assert await complete_streamed(client, "hello", usage=False) == ("answer 1", None)
    assert upstream.calls == 1


@pytest.mark.parametrize("usage", [True, False])
async def test_a_streamed_answer_is_repeated_as_a_plain_one_with_its_tokens(
    official: tuple[openai.AsyncOpenAI, NumberingModel], usage: bool
) -> None:
    client, upstream = official
    first = await complete_streamed(client, "hello", usage=usage)
    assert first == ("answer 1", 7 if usage else None)
    content, tokens = await complete(client, "hello")
    assert content == "answer 1"
    assert tokens == 7 if usage else tokens > 0
    assert (await complete_streamed(client, "hello", usage=True))[0] == "answer 1"
    assert upstream.calls == 1


async def test_a_stream_from_the_cache_is_a_valid_event_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        headers = {"authorization": f"Bearer {token}"}
        for expected in ("miss", "hit"):
            body = chat("hello", "m", temperature=0, stream=True)
            async with server.http.post(server.url + CHAT, json=body, headers=headers) as response:
                assert response.headers["x-signoff-cache"] == expected
                assert response.content_type == "text/event-stream"
                raw = await response.read()
            assert raw.endswith(b"\n\ndata: [DONE]\n\n")
            assert all(event.startswith(b"data: ") for event in raw.removesuffix(b"\n\n").split(b"\n\n"))
        assert upstream.calls == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/edits"])
async def test_answers_of_other_endpoints_are_cached_separately(path: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        body = {"model": "m", "prompt": "x", "input": "x", "instruction": "x", "temperature": 0}
        first = await ask(server, token, path, body)
        again = await ask(server, token, path, body)
        assert (first[2], again[2], first[1]) == ("miss", "hit", again[1])
        assert (await ask(server, token, f"/api/cache{path}/", body))[1] == [
            {"response": "answer 1", "cache_hit": True}
        ]
        assert (await ask(server, token, f"/api/cache{CHAT}", body))[1] == []
        assert upstream.calls == 1


async def test_an_incomplete_stream_is_not_cached(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for stream in (True, False):
            for _ in range(2):
                body = chat("hello there you", "echo/cut", temperature=0, stream=stream)
                headers = {"authorization": f"Bearer {token}"}
                async with server.http.post(server.url + CHAT, json=body, headers=headers) as response:
                    assert response.headers["x-signoff-cache"] == "miss"
                    await response.read()
        assert (await server.ask("GET", "/api/cache", token))[1] == {"entries": 0, "size_bytes": 0}


@pytest.mark.parametrize("door", DOORS)
async def test_an_error_is_not_cached(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path, later_attempts=1, now_attempts=1) as (server, upstream):
        token = await server.token()
        upstream.status = 500
        status, content, _ = await DOORS[door](server, token)
        assert (status, content, upstream.calls) == (500, None, 1)
        upstream.status = 200
        assert await DOORS[door](server, token) == (200, "answer 2", "miss")


# Users


@pytest.mark.parametrize("door", DOORS)
async def test_a_user_never_gets_another_users_answer(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        admin = await server.token("admin")
        assert await DOORS[door](server, ann) == (200, "answer 1", "miss")
        assert await DOORS[door](server, bob) == (200, "answer 2", "miss")
        assert await DOORS[door](server, admin) == (200, "answer 3", "miss")
        assert await DOORS[door](server, ann) == (200, "answer 1", "hit")
        assert await DOORS[door](server, bob) == (200, "answer 2", "hit")


async def test_no_kind_of_cache_gives_a_user_another_users_answer(
    cache_settings: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(tmp_path, **cache_settings) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        for door in (at_cached, at_openai):
            ours = await door(server, ann)
            theirs = await door(server, bob)
            assert (ours[2], theirs[2]) == ("miss", "miss")
            assert ours[1] != theirs[1]
            assert await door(server, bob) == (200, theirs[1], "hit")
        body = chat("hello", "m")
        for token, content in ((ann, "answer 1"), (bob, "answer 2")):
            _, entries, _ = await ask(server, token, f"/api/cache{CHAT}", body)
            assert entries == [{"response": content, "cache_hit": True}]
        stranger = await server.token(email="eve@example.com")
        assert (await ask(server, stranger, f"/api/cache{CHAT}", body))[1] == []


async def test_with_a_shared_cache_all_users_get_one_answer(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, cache_shared=True, **cache_settings) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        assert await at_cached(server, ann) == (200, "answer 1", "miss")
        assert await at_cached(server, bob) == (200, "answer 1", "hit")
        assert upstream.calls == 1
        # Parsers differ on a repeated member, so such a request must not store an answer that others could get.
        twice = (
            '{"model":"m","messages":[{"role":"user","content":"evil"}],"messages":[{"role":"user","content":"kind"}]}'
        )
        headers = {"authorization": f"Bearer {ann}"}
        async with server.http.post(f"{server.url}/api/openai{CHAT}", data=twice, headers=headers) as response:
            assert response.status == 400
        assert await at_cached(server, bob, "kind") == (200, "answer 2", "miss")


async def test_answers_of_a_shared_cache_are_not_used_once_it_is_private(tmp_path: Path) -> None:
    async with serving(tmp_path, cache_shared=True) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        await at_cached(server, ann)
        async with live(tmp_path) as strict:
            assert await at_cached(strict, bob) == (200, "answer 2", "miss")
        assert upstream.calls == 2


# Answers that are not repeated


async def test_held_and_rejected_answers_are_never_served_from_the_cache(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        for number, verdict in enumerate(["fail", "cancel", None], 1):
            task = asyncio.ensure_future(at_cached(server, token, prefer="wait=1" if verdict is None else "wait=30"))
            job = await held_job(server, reviewer)
            # a held answer is not in the cache
            assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            assert (await ask(server, reviewer, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            if verdict == "cancel":
                assert (await server.ask("DELETE", f"/api/jobs/{job['job_id']}", token))[0] == 200
            elif verdict is not None:
                await server.ask("POST", "/reviewJob", reviewer, json={"id": job["job_id"], "status": verdict})
            status, content, _ = await task
            assert (status in {403, 409, 504}, content) == (True, None)
            # and neither is one that was rejected, cancelled or is still held
            assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            assert upstream.calls == number
        assert (await server.ask("GET", "/api/cache", await server.token("admin")))[1]["entries"] == 0


@pytest.mark.parametrize("edited", [None, "a person's words"])
async def test_an_answer_that_a_reviewer_approved_is_repeated_as_it_was_sent(
    edited: str | None, tmp_path: Path
) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        for door in (at_openai, at_native):
            task = asyncio.ensure_future(door(server, token, door.__name__))
            job = await held_job(server, reviewer)
            words = {} if edited is None else {"response": edited}
            review = {"id": job["job_id"], "status": "success"} | words
            assert (await server.ask("POST", "/reviewJob", reviewer, json=review))[0] == 200
            number = upstream.calls
            content = f"answer {number}" if edited is None else edited
            assert await task == (200, content, "miss")
            assert await door(server, token, door.__name__) == (200, content, "hit")
            assert upstream.calls == number


async def test_the_answer_to_a_reviewers_edited_request_is_not_cached(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        task = asyncio.ensure_future(at_openai(server, token))
        first = await held_job(server, reviewer)
        redo = {"id": first["job_id"], "status": "bot", "payload": chat("other", "m", temperature=0)}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=redo))[0] == 200
        again = await server.job_when(
            reviewer, first["job_id"], lambda job: job["status"] == "human" and job["round"] == 2
        )
        await server.ask("POST", "/reviewJob", reviewer, json={"id": again["job_id"], "status": "success"})
        assert (await task)[:2] == (200, "answer 2")
        assert (await server.ask("GET", f"/api/jobs/{first['job_id']}", token))[1]["cache"] == "bypass"
        for text in ("hello", "other"):
            body = chat(text, "m", temperature=0)
            assert (await ask(server, token, f"/api/cache{CHAT}", body))[1] == []


async def test_the_answer_to_a_retry_of_a_reviewers_edited_request_is_not_cached(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        # given a job whose request a reviewer has edited, and whose second answer was rejected
        task = asyncio.ensure_future(at_openai(server, token))
        job_id = (await held_job(server, reviewer))["job_id"]
        redo = {"id": job_id, "status": "bot", "payload": chat("other", "m", temperature=0)}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=redo))[0] == 200
        await server.job_when(reviewer, job_id, lambda job: job["status"] == "human" and job["round"] == 2)
        assert (await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "fail"}))[0] == 200
        assert (await task)[0] == 403
        # when its owner retries it, and the answer to the edited request is approved
        _, retried = await server.ask("POST", f"/api/jobs/{job_id}/retry", token)
        await server.job_when(reviewer, retried["job_id"], lambda job: job["status"] == "human")
        approve = {"id": retried["job_id"], "status": "success"}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=approve))[0] == 200
        # then the caller's own request does not get it
        job = await server.job_when(token, retried["job_id"], lambda job: job["status"] == "success")
        assert job["cache"] == "bypass"
        for text in ("hello", "other"):
            assert (await ask(server, token, f"/api/cache{CHAT}", chat(text, "m", temperature=0)))[1] == []


async def test_after_an_unchanged_second_round_its_answer_is_cached(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        task = asyncio.ensure_future(at_openai(server, token))
        job_id = (await held_job(server, reviewer))["job_id"]
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "bot"})
        await server.job_when(reviewer, job_id, lambda job: job["status"] == "human" and job["round"] == 2)
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success"})
        assert await task == (200, "answer 2", "miss")
        assert await at_openai(server, token) == (200, "answer 2", "hit")


@pytest.mark.parametrize("door", [at_openai, at_cached, at_predict])
async def test_a_stricter_policy_is_not_bypassed_by_an_old_entry(door: Door, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token, reviewer = await server.token(), await server.token("reviewer")
        await door(server, token)
        assert (await door(server, token))[2] == "hit"
        await server.model("m", kind="openai", url=upstream.url, review="always")
        status, content, _ = await door(server, token, prefer="wait=0")
        assert (status, content) == (504, None)
        assert (await held_job(server, reviewer))["status"] == "human"
        # once the model is as it was, its entries are valid again
        await server.model("m", kind="openai", url=upstream.url)
        assert await door(server, token) == (200, "answer 1", "hit")


async def test_a_stricter_door_is_not_bypassed_by_an_old_entry(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_enqueue(server, token)
        async with live(tmp_path, enqueue_review="always") as strict:
            _, payload, _ = await ask(strict, token, "/enqueue", chat("hello", "m", temperature=0))
            await strict.job_when(token, payload["job_id"], lambda job: job["status"] == "human")


async def test_answers_are_not_shared_between_different_undo_times_or_deadlines(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_cached(server, token)
        for more in ({"release_after_seconds": 5}, {"review_deadline_seconds": 5}):
            async with live(tmp_path, **more) as other:
                assert (await at_cached(other, token))[2] == "miss"


@pytest.mark.parametrize(
    "change", [{"url": "other"}, {"upstream_model": "better"}, {"attempts": 2}], ids=lambda change: next(iter(change))
)
async def test_a_changed_model_does_not_repeat_its_old_answers(change: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream), NumberingModel("other") as other:
        token, admin = await server.token(), await server.token("admin")
        assert await at_cached(server, token) == (200, "answer 1", "miss")
        fields = {"url": other.url} if "url" in change else change
        assert (await server.ask("PATCH", "/api/models/m", admin, json=fields))[0] == 200
        content = "other 1" if "url" in change else "answer 2"
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert await at_cached(server, token) == (200, content, "miss")
        assert upstream.calls + other.calls == 2


@pytest.mark.parametrize("door", [at_cached, at_native])
async def test_an_answer_of_a_model_that_was_changed_meanwhile_is_not_cached(door: Door, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream), NumberingModel("other") as other:
        token = await server.token()
        upstream.gate.clear()
        task = asyncio.ensure_future(door(server, token))
        await upstream.received()
        await register_model(server.services, Model(name="m", kind="openai", url=other.url))
        upstream.gate.set()
        assert await task == (200, "answer 1", "bypass")
        assert await door(server, token) == (200, "other 1", "miss")
        # once the model is as it was, the answer from the time of the change is not in the cache
        await register_model(server.services, Model(name="m", kind="openai", url=upstream.url))
        assert await door(server, token) == (200, "answer 2", "miss")


async def test_an_admins_test_request_does_not_use_the_cache(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, cache="always")
        admin = await server.token("admin")
        for _ in range(2):
            assert (await server.ask("POST", "/api/models/m", admin, json="hello"))[1]["ok"]
        assert upstream.calls == 2


# Cache-Control


@pytest.mark.parametrize("door", DOORS)
async def test_cache_control_is_obeyed_on_every_door(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token, at = await server.token(), DOORS[door]
        assert await at(server, token, cache_control="no-store") == (200, "answer 1", "bypass")
        assert await at(server, token, cache_control="max-age=100") == (200, "answer 2", "miss")
        assert await at(server, token, cache_control="no-store") == (200, "answer 3", "bypass")
        assert await at(server, token, cache_control="max-age=100") == (200, "answer 2", "hit")
        assert await at(server, token, cache_control="no-cache") == (200, "answer 4", "miss")
        assert await at(server, token) == (200, "answer 4", "hit")
        assert await at(server, token, cache_control="max-age=0") == (200, "answer 5", "miss")
        assert await at(server, token) == (200, "answer 5", "hit")
        assert upstream.calls == 5


async def test_an_answer_older_than_max_age_is_a_miss(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **cache_settings) as (server, _):
        token = await server.token()
        await at_cached(server, token)

        async def is_too_old() -> bool | None:
            return (await at_cached(server, token, cache_control="max-age=1"))[2] == "miss" or None

        await until(is_too_old)
        assert (await at_cached(server, token, cache_control="max-age=60"))[1] == "answer 2"


async def test_an_answer_is_gone_after_its_time_to_live(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, cache_ttl_seconds=0.5, **cache_settings) as (server, upstream):
        token = await server.token()
        await at_cached(server, token)

        async def is_gone() -> bool | None:
            _, entries, _ = await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m"))
            return entries == [] or None

        await until(is_gone)
        assert (await at_cached(server, token))[1:] == ("answer 2", "miss")
        assert upstream.calls == 2


async def test_a_server_without_a_cache_calls_the_model_each_time(tmp_path: Path) -> None:
    async with serving(tmp_path, cache="none") as (server, upstream):
        token = await server.token("admin")
        for number in (1, 2):
            assert await at_cached(server, token) == (200, f"answer {number}", "bypass")
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert (await server.ask("GET", "/api/cache", token)) == (200, {"entries": 0, "size_bytes": 0})
        assert (await server.ask("DELETE", "/api/cache", token)) == (200, {"deleted": 0})
        assert upstream.calls == 2


# Idempotency keys and ids


async def test_an_idempotency_key_precedes_the_cache(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        await at_cached(server, token)
        body = chat("hello", "m")
        headers = {"authorization": f"Bearer {token}", "idempotency-key": "k"}
        ids = list[str]()
        for _ in range(3):
            async with server.http.post(f"{server.url}/api/openai{CHAT}", json=body, headers=headers) as response:
                ids.append(response.headers["x-signoff-job"])
                assert (await response.json())["response"] == "answer 1"
        assert len(set(ids)) == 1
        status, payload, _ = await ask(server, token, f"/api/openai{CHAT}", chat("other", "m"), idempotency_key="k")
        assert (status, payload["code"]) == (422, "idempotency_key_reused")
        # and a key of an unfinished job joins that job
        upstream.gate.clear()
        first = asyncio.ensure_future(at_cached(server, token, "new", idempotency_key="l", cache_control="no-cache"))
        await upstream.received(2)
        second = asyncio.ensure_future(at_cached(server, token, "new", idempotency_key="l"))
        upstream.gate.set()
        assert await first == await second == (200, "answer 2", "miss")


async def test_a_client_id_precedes_the_cache(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_generate(server, token)
        request = {"job_id": "mine", "meta": {"model": "m", "temperature": 0}, "content": "hello"}
        for _ in range(2):
            assert await ask(server, token, "/generate", request) == (200, {"content": "answer 1"}, "hit")
        assert (await server.ask("GET", "/check_status?job_id=mine", token))[1]["job_status"] == "completed"
        assert (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 2
        assert (await ask(server, token, "/generate", request | {"content": "other"}))[0] == 409


async def test_a_retried_job_calls_the_model_and_replaces_the_cached_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_native(server, token)
        _, page = await server.ask("GET", "/api/jobs", token)
        _, again = await server.ask("POST", f"/api/jobs/{page['data'][0]['job_id']}/retry", token)
        ended = await server.job_when(token, again["job_id"], lambda job: job["status"] == "success")
        assert ended["response"]["choices"][0]["message"]["content"] == "answer 2"
        assert await at_native(server, token) == (200, "answer 2", "hit")


# Load and size


async def test_a_hundred_equal_requests_at_once_are_answered_and_one_entry_per_user_is_cached(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        results = await together(at_cached(server, token) for token in [ann, bob] * 50)
        assert {status for status, _, _ in results} == {200}
        anns, bobs = {content for _, content, _ in results[::2]}, {content for _, content, _ in results[1::2]}
        assert not anns & bobs
        calls = upstream.calls
        repeated = await together(at_cached(server, token) for token in [ann, bob] * 50)
        assert {cache for _, _, cache in repeated} == {"hit"}
        assert (
            len({content for _, content, _ in repeated[::2]}) == len({content for _, content, _ in repeated[1::2]}) == 1
        )
        assert {content for _, content, _ in repeated[::2]} <= anns
        assert upstream.calls == calls
        assert (await server.ask("GET", "/api/cache", ann))[1]["entries"] == 1


async def test_an_answer_of_a_megabyte_is_repeated_whole(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **cache_settings) as (server, upstream):
        upstream.padding = 1024 * 1024
        token = await server.token()
        status, first, cache = await at_cached(server, token)
        assert (status, cache, len(first or "")) == (200, "miss", 1024 * 1024 + len("answer 1"))
        assert await at_cached(server, token) == (200, first, "hit")
        async with live(tmp_path, **cache_settings) as other:
            is_shared = cache_settings.get("cache") != "memory"
            assert (await at_cached(other, token))[2] == ("hit" if is_shared else "miss")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"a":NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"model":"m","messages":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"model":5}',
        b'{"model":"m","temperature":0,"x":"\\ud800"}',
        b'{"model":"m","a":1,"a":2}',
        b'{"model":"m","n":123456789012345678901234567890123456789012345678901234567890}',
        b'{"model":"m","n":' + b"9" * 5000 + b"}",
    ],
)
async def test_malformed_bodies_are_answered_and_do_no_harm(body: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        for path in (f"/api/openai{CHAT}", f"/api/cache{CHAT}", CHAT):
            headers = {"authorization": f"Bearer {token}"}
            for _ in range(2):
                async with server.http.post(server.url + path, data=body, headers=headers) as response:
                    assert response.status in {200, 400, 502}, await response.text()
        assert (await at_cached(server, token))[0] == 200


# Outages of the cache


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[TcpProxy]:
    """Yield a proxy in front of Redis, whose connections can be cut."""
    async with TcpProxy(redis_url) as proxy:
        yield proxy


async def test_while_redis_is_down_models_are_called_and_the_cache_recovers(
    tmp_path: Path, wire: TcpProxy, prefix: str
) -> None:
    async with serving(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as (server, upstream):
        token = await server.token()
        await at_cached(server, token, "before")
        # when Redis is down, the process's own copies are served and the model is called for all else
        await wire.shut()
        assert (await at_cached(server, token, "before"))[2] == "hit"
        results = await together(at_cached(server, token, f"while {number}") for number in range(20))
        assert {(status, cache) for status, _, cache in results} == {(200, "miss")}
        assert await ask(server, token, f"/api/cache{CHAT}", chat("nobody", "m")) == (200, [], None)
        assert (await server.ask("GET", "/health/ready"))[0] == 200
        status, payload = await server.ask("DELETE", "/api/cache", token)
        assert (status, payload["code"]) == (503, "overloaded")
        # then it is used again soon after it is back
        await wire.open()

        async def is_back() -> bool | None:
            await at_cached(server, token, "after", cache_control="no-cache")
            status, payload = await server.ask("GET", "/api/cache", token)
            return (status == 200 and payload["entries"] > 1) or None

        await until(is_back)
        async with live(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as other:
            assert (await at_cached(other, token, "after"))[2] == "hit"
        assert upstream.calls >= 22


async def test_an_unresponsive_redis_delays_requests_only_briefly(
    tmp_path: Path, wire: TcpProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_SECONDS", DEFAULT_LOOKUP_TIMEOUT_SECONDS)
    async with serving(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as (server, _):
        token = await server.token()
        await at_openai(server, token, "before")
        wire.block()
        async with asyncio.timeout(60):
            results = await together(at_openai(server, token, f"while {number}") for number in range(50))
        assert {(status, cache) for status, _, cache in results} == {(200, "miss")}
        wire.unblock()

        async def is_back() -> bool | None:
            await at_openai(server, token, "after", cache_control="no-cache")
            async with live(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as other:
                return (await at_openai(other, token, "after"))[2] == "hit" or None

        await until(is_back)


async def test_after_redis_was_flushed_the_cache_is_empty(tmp_path: Path, redis_url: str, prefix: str) -> None:
    from redis.asyncio import Redis

    settings = {"cache": "redis", "redis_url": redis_url, "redis_prefix": prefix}
    async with serving(tmp_path, **settings) as (server, _), Redis.from_url(redis_url) as redis:
        token = await server.token()
        await at_cached(server, token)
        names = [name async for name in redis.scan_iter(f"{{{prefix}:cache}}:*")]
        assert names
        await redis.delete(*names)
        async with live(tmp_path, **settings) as other:
            assert (await at_cached(other, token))[1:] == ("answer 2", "miss")
            assert (await at_cached(other, token))[1:] == ("answer 2", "hit")


# Deletion


@pytest.fixture(params=["sql", "redis"])
def shared(request: pytest.FixtureRequest, prefix: str) -> dict[str, Any]:
    """Return the settings of a cache that several processes share."""
    if request.param == "sql":
        return {}
    return {"cache": "redis", "redis_url": request.getfixturevalue("redis_url"), "redis_prefix": prefix}


async def test_a_user_deletes_their_own_entries_and_an_admin_those_of_any_user(
    shared: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(tmp_path, **shared) as (server, upstream):
        await server.model("n", kind="openai", url=upstream.url)
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        admin = await server.token("admin")
        for token in (ann, bob, admin):
            for text in ("one", "two"):
                await at_cached(server, token, text)
        sizes = [(await server.ask("GET", "/api/cache", token))[1]["entries"] for token in (ann, bob, admin)]
        assert sizes == [2, 2, 6]
        jobs = 6

        async def all_written() -> dict[str, Any] | None:
            _, page = await server.ask("GET", "/api/jobs?total=1", admin)
            theirs = (await server.ask("GET", "/api/jobs", ann))[1]["data"]
            return theirs[0] if page["total"] == jobs and theirs else None

        job = await until(all_written)
        key = job["cache_key"]

        # a user cannot delete or count the entries of others
        assert (await server.ask("DELETE", "/api/cache?user=ann@example.com", bob))[0] == 403
        assert (await server.ask("GET", "/api/cache?user=ann@example.com", bob))[0] == 403
        assert (await server.ask("DELETE", f"/api/cache?key={key}", bob)) == (200, {"deleted": 0})
        # delete one entry, some entries, all entries
        assert (await server.ask("DELETE", f"/api/cache?key={key}", ann)) == (200, {"deleted": 1})
        assert (await server.ask("DELETE", "/api/cache/", bob)) == (200, {"deleted": 2})
        assert (await server.ask("DELETE", "/api/cache?model=n", admin)) == (200, {"deleted": 0})
        assert (await server.ask("DELETE", "/api/cache?user=ann@example.com&model=m", admin)) == (200, {"deleted": 1})
        assert (await server.ask("DELETE", "/api/cache?user=nobody@example.com", admin))[0] == 404
        for blank in ("key=", "key", "user=", "model=&target=x", "usr=ann"):
            assert (await server.ask("DELETE", f"/api/cache?{blank}", admin))[0] == 400
        assert (await server.ask("GET", "/api/cache", admin))[1]["entries"] == 2
        assert (await server.ask("DELETE", "/api/cache", admin)) == (200, {"deleted": 2})

        for token in (ann, bob, admin):
            assert (await at_cached(server, token, "one"))[2] == "miss"
        # the jobs are unchanged
        assert (await server.ask("GET", "/api/jobs?total=1", admin))[1]["total"] >= jobs
        assert (await server.ask("GET", f"/api/jobs/{job['job_id']}", ann))[1]["response"]


async def test_deleting_ones_own_entries_leaves_those_of_others(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **cache_settings) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        await at_cached(server, ann)
        await at_cached(server, bob)
        assert (await server.ask("DELETE", "/api/cache?key=nonesuch", bob)) == (200, {"deleted": 0})
        assert (await at_cached(server, bob))[2] == "hit"
        assert (await server.ask("DELETE", "/api/cache", bob)) == (200, {"deleted": 1})
        assert [(await at_cached(server, token))[2] for token in (ann, bob)] == ["hit", "miss"]


async def test_a_deletion_applies_to_every_process(cache_settings: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **cache_settings) as (server, _), live(tmp_path, **cache_settings) as other:
        token = await server.token("admin" if cache_settings.get("cache") == "memory" else "user")
        for each in (server, other):
            await at_cached(each, token)
            assert (await at_cached(each, token))[2] == "hit"
        assert (await server.ask("DELETE", "/api/cache", token))[0] == 200
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []

        async def is_gone() -> bool | None:
            return (await ask(other, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == [] or None

        await until(is_gone)


# The doors of the cache


async def test_the_examples_of_the_specification_work(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("gpt-3.5-turbo-1106", kind="openai", url=upstream.url)
        token = await server.token()
        messages = [{"role": "user", "content": "Is blue a color for blind?"}]
        body = {"model": "gpt-3.5-turbo-1106", "messages": messages}
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

        async def post(path: str) -> Any:
            async with server.http.post(
                server.url + path, data=json.dumps(body, indent=4), headers=headers
            ) as response:
                assert (response.status, response.content_type) == (200, "application/json")
                return await response.json()

        assert await post("/api/cache/v1/chat/completions/") == []
        assert await post("/api/openai/v1/chat/completions/") == {"response": "answer 1", "cache_hit": False}
        assert await post("/api/openai/v1/chat/completions/") == {"response": "answer 1", "cache_hit": True}
        assert await post("/api/openai/v1/chat/completions") == {"response": "answer 1", "cache_hit": True}
        assert await post("/api/cache/v1/chat/completions/") == [{"response": "answer 1", "cache_hit": True}]
        assert await post("/api/cache/v1/chat/completions") == [{"response": "answer 1", "cache_hit": True}]
        body = {"model": "gpt-3.5-turbo-1106", "input": "What day of the wek is it?", "instruction": "Fix it"}
        assert await post("/api/openai/v1/edits/") == {"response": "answer 2", "cache_hit": False}
        assert await post("/api/cache/v1/edits/") == [{"response": "answer 2", "cache_hit": True}]


async def test_a_lookup_calls_no_model_and_creates_no_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert upstream.calls == 0
        assert (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 0


async def test_an_answer_without_text_is_returned_as_json(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"model": "echo", "input": "hello"}
        _, first, _ = await ask(server, token, "/api/openai/v1/embeddings", body)
        _, again, _ = await ask(server, token, "/api/openai/v1/embeddings", body)
        assert first["response"]["data"][0]["embedding"]
        assert (first["cache_hit"], again) == (False, first | {"cache_hit": True})


async def test_a_stream_is_returned_as_its_text(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        body = chat("hello", "m", stream=True)
        for hit in (False, True):
            payload = (await ask(server, token, f"/api/openai{CHAT}", body))[1]
            assert payload == {"response": "answer 1", "cache_hit": hit}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", f"/api/openai{CHAT}", b"{", 400, "invalid_json"),
        ("POST", f"/api/cache{CHAT}", b"{", 400, "invalid_json"),
        ("POST", f"/api/openai{CHAT}", b"[]", 400, "bad_request"),
        ("POST", f"/api/openai{CHAT}", b'{"model":"nobody"}', 404, "model_not_found"),
        ("POST", f"/api/cache{CHAT}", b'{"model":"nobody"}', 404, "model_not_found"),
        ("POST", "/api/openai/v1/nonsense", b"{}", 404, "not_found"),
        ("POST", "/api/openai/", b"{}", 404, "not_found"),
        ("POST", "/api/cache/nonsense", b"{}", 404, "not_found"),
        ("POST", "/api/cache", b"{}", 405, "method_not_allowed"),
        ("POST", "/api/cachenonsense", b"{}", 404, "not_found"),
        ("GET", f"/api/openai{CHAT}", b"", 405, "method_not_allowed"),
        ("POST", f"/api/openai{CHAT}", b'{"model":"echo/status=418","messages":[]}', 418, "model_error"),
        ("POST", f"/api/openai{CHAT}", b'{"model":"echo/status=503","messages":[]}', 503, "model_error"),
    ],
)
async def test_errors_have_a_detail_and_the_status_of_the_model(
    method: str, path: str, body: bytes, status: int, code: str, tmp_path: Path
) -> None:
    async with live(tmp_path, now_attempts=1) as server:
        actual, payload = await server.ask(method, path, await server.token(), data=body)
        assert (actual, payload["code"], bool(payload["detail"])) == (status, code, True)
        actual, payload = await server.ask(method, path, None, data=body)
        assert (actual, payload["code"]) == (401, "unauthorized")


async def test_a_caller_who_leaves_stops_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        upstream.gate.clear()
        task = asyncio.ensure_future(at_cached(server, token))
        await upstream.received()
        task.cancel()

        async def is_cancelled() -> bool | None:
            _, page = await server.ask("GET", "/api/jobs?status=fail", token)
            return (bool(page["data"]) and page["data"][0]["error"]["code"] == "cancelled") or None

        await until(is_cancelled)
        assert (await server.ask("GET", "/api/cache", token))[1]["entries"] == 0
