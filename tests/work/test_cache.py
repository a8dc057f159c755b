"""The cache in front of everything: what is given again, to whom, and what never is."""

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
from signoff.core.model import Model
from signoff.runtime import response_cache
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.registry import register_model
from support.live_server import Live, chat, live, until
from support.stores import together

pytestmark = pytest.mark.anyio

# What a door said: the status, the words of its answer, and what became of the cache.
Said = tuple[int, str | None, str | None]
Door = Callable[..., Awaitable[Said]]
CHAT = "/v1/chat/completions"


async def ask(server: Live, token: str, path: str, body: Any, **headers: str) -> tuple[int, Any, str | None]:
    """The status, the JSON, and `x-signoff-cache`."""
    told = {"authorization": f"Bearer {token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with server.http.post(server.url + path, json=body, headers=told) as response:
        return response.status, await response.json(), response.headers.get("x-signoff-cache")


async def at_openai(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    status, told, cache = await ask(server, token, CHAT, chat(text, "m", temperature=0), **headers)
    return status, told["choices"][0]["message"]["content"] if status == 200 else None, cache


async def at_predict(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    status, told, cache = await ask(server, token, "/post/predict?id=m", chat(text, "m", temperature=0), **headers)
    return status, told["choices"][0]["message"]["content"] if status == 200 else None, cache


async def at_cached(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    status, told, cache = await ask(server, token, f"/api/openai{CHAT}", chat(text, "m"), **headers)
    if status != 200:
        return status, None, cache
    assert told["cache_hit"] == (cache == "hit")
    return status, told["response"], cache


async def at_generate(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    asked = {"meta": {"model": "m", "temperature": 0}, "content": text}
    status, told, cache = await ask(server, token, "/generate", asked, **headers)
    return status, told.get("content"), cache


async def at_chat_completion(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    asked = {"meta": {"model": "m", "temperature": 0}, "messages": chat(text)["messages"]}
    status, told, cache = await ask(server, token, "/chat_completion", asked, **headers)
    return status, told.get("content"), cache


async def at_native(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    wanted = {"target": "m", "body": chat(text, "m", temperature=0)}
    _, job, _ = await ask(server, token, "/api/jobs", wanted, **headers)
    told = {"authorization": f"Bearer {token}"}
    async with server.http.get(f"{server.url}/api/jobs/{job['job_id']}?wait=10", headers=told) as response:
        job, cache = await response.json(), response.headers["x-signoff-cache"]
    assert job["cache"] == cache
    said = job["response"]["choices"][0]["message"]["content"] if job["response"] else None
    return (200 if job["status"] == "success" else job["error"]["status"]), said, cache


async def at_enqueue(server: Live, token: str, text: str = "hello", **headers: str) -> Said:
    _, told, _ = await ask(server, token, "/enqueue", chat(text, "m", temperature=0), **headers)
    job = await server.job_when(token, told["job_id"], lambda job: job["status"] in {"success", "fail"})
    said = job["response"]["choices"][0]["message"]["content"] if job["response"] else None
    return (200 if job["status"] == "success" else job["error"]["status"]), said, job["cache"]


DOORS: dict[str, Door] = {
    "openai": at_openai,
    "predict": at_predict,
    "cached": at_cached,
    "generate": at_generate,
    "chat_completion": at_chat_completion,
    "native": at_native,
    "enqueue": at_enqueue,
}


HURRY_SECONDS = response_cache.LOOKUP_TIMEOUT_SECONDS


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does much else at once makes no misses."""
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(response_cache, "STORE_WAIT_SECONDS", 60)


@pytest.fixture(params=["sql", "postgres", "redis", "memory"])
def keeper(request: pytest.FixtureRequest, prefix: str) -> dict[str, Any]:
    """Return the settings of a server with that cache."""
    match request.param:
        case "postgres":
            return {"database_url": request.getfixturevalue("postgres_url")}
        case "redis":
            return {"cache": "redis", "redis_url": request.getfixturevalue("redis_url"), "redis_prefix": prefix}
        case kind:
            return {"cache": kind}


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, NumberingModel]]:
    """A server with the model `m`, whose answers are numbered. Nothing is held unless the model says so."""
    async with NumberingModel() as upstream, live(tmp_path, **({"enqueue_review": "never"} | settings)) as server:
        await server.model("m", kind="openai", url=upstream.url)
        yield server, upstream


async def held_job(server: Live, reviewer: str) -> dict[str, Any]:
    """The one job that waits for a person."""

    async def look() -> dict[str, Any] | None:
        _, page = await server.ask("GET", "/api/jobs?status=human", reviewer)
        return page["data"][0] if page["data"] else None

    return await until(look)


# Given again


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_gives_a_signed_off_answer_again(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert await DOORS[door](server, token) == (200, "answer 1", "miss")
        assert await DOORS[door](server, token) == (200, "answer 1", "hit")
        assert await DOORS[door](server, token, "other") == (200, "answer 2", "miss")
        assert upstream.calls == 2


async def test_every_keeper_gives_it_again_and_another_process_does(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, upstream):
        token = await server.token()
        assert await at_openai(server, token) == (200, "answer 1", "miss")
        assert await at_openai(server, token) == (200, "answer 1", "hit")
        assert await at_cached(server, token, "eye") == (200, "answer 2", "miss")
        async with live(tmp_path, **keeper) as other:
            is_shared = keeper.get("cache") != "memory"
            expected = (200, "answer 2", "hit") if is_shared else (200, "answer 3", "miss")
            assert await at_cached(other, token, "eye") == expected
        assert upstream.calls == (2 if is_shared else 3)


async def test_doors_that_ask_the_same_have_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert await at_openai(server, token) == (200, "answer 1", "miss")
        assert await at_native(server, token) == (200, "answer 1", "hit")
        assert await at_enqueue(server, token) == (200, "answer 1", "hit")
        body = chat("hello", "m", temperature=0)
        assert (await ask(server, token, f"/api/openai{CHAT}", body))[1] == {"response": "answer 1", "cache_hit": True}
        assert (await ask(server, token, f"/openai{CHAT}/", body))[2] == "hit"
        assert upstream.calls == 1


async def test_only_requests_without_chance_are_kept_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        for more in ({}, {"temperature": 0.7}, {"temperature": 1e-9}):
            for _ in range(2):
                assert (await ask(server, token, CHAT, chat("x", "m", **more)))[2] == "bypass"
        assert upstream.calls == 6
        for number, more in enumerate([{"temperature": 0.0}, {"seed": 5}, {"seed": 6, "temperature": 2}]):
            assert [(await ask(server, token, CHAT, chat("x", "m", **more)))[2] for _ in range(2)] == ["miss", "hit"]
            assert upstream.calls == 7 + number


async def test_a_model_rules_before_a_token_and_a_token_before_a_door(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        user = await create_user(server.services, "rules@example.com", "user")
        plain, never, always = [
            await create_token(server.services, user, cache=rule) for rule in (None, "never", "always")
        ]  # type: ignore[arg-type]
        for name, rule in (("always", "always"), ("never", "never")):
            await server.model(name, kind="openai", url=upstream.url, cache=rule)

        async def states(token: str, model: str, path: str = CHAT, **more: Any) -> list[str | None]:
            return [(await ask(server, token, path, chat(path + token, model, **more)))[2] for _ in range(2)]

        kept, not_kept = ["miss", "hit"], ["bypass", "bypass"]
        assert await states(plain, "m") == not_kept
        assert await states(always, "m") == kept
        assert await states(never, "m", temperature=0) == not_kept
        assert await states(never, "m", f"/api/openai{CHAT}") == not_kept
        assert await states(plain, "always") == await states(never, "always") == kept
        assert await states(plain, "never", f"/api/openai{CHAT}") == await states(always, "never", seed=1) == not_kept


async def test_a_hit_is_a_job_that_took_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token("admin")
        for _ in range(2):
            await at_openai(server, token)

        async def both() -> list[dict[str, Any]] | None:
            _, page = await server.ask("GET", "/api/jobs", token)
            return page["data"] if len(page["data"]) == 2 else None

        hit, miss = await until(both)
        assert (miss["cache"], hit["cache"]) == ("miss", "hit")
        assert hit["cache_key"] == miss["cache_key"]
        assert hit["response"] == miss["response"]
        assert (hit["status"], hit["attempt"], hit["round"]) == ("success", 0, 0)
        _, events = await server.ask("GET", f"/api/jobs/{hit['job_id']}/events", token)
        assert [(event["verb"], event["data"]["moves"]) for event in events["data"]] == [("hit", ["hit"])]
        kept = await server.services.store.jobs.get(hit["job_id"])
        assert kept is not None
        assert kept.usage is not None
        assert kept.usage.total_tokens == 0


async def test_the_end_of_a_hit_is_told(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, webhook_allow=["127.0.0.1"]) as (server, _),
        WebhookReceiver() as receiver,
    ):
        token = await server.token()
        await at_native(server, token)
        deliver = {"url": receiver.url, "secret": SECRET}
        wanted = {"target": "m", "body": chat("hello", "m", temperature=0), "deliver": deliver}
        status, job, cache = await ask(server, token, "/api/jobs", wanted)
        assert (status, job["status"], cache) == (202, "success", "hit")
        told = json.loads((await receiver.received())[0].body)
        assert (told["type"], told["data"]["job_id"]) == ("job.succeeded", job["job_id"])


async def test_a_job_for_later_asks_when_its_time_has_come(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_native(server, token)
        wanted = {"target": "m", "body": chat("hello", "m", temperature=0), "due_at": "2999-01-01T00:00:00Z"}
        assert (await ask(server, token, "/api/jobs", wanted))[1]["status"] == "bot"


# Streams


@pytest.fixture
async def official(tmp_path: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, NumberingModel]]:
    """Yield the official client at a server, and the model behind it."""
    async with (
        serving(tmp_path) as (server, upstream),
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=await server.token(), max_retries=0) as client,
    ):
        yield client, upstream


async def plainly(client: openai.AsyncOpenAI, text: str) -> tuple[str | None, int]:
    """The words of a plain answer, and its tokens."""
    told = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], temperature=0)
    assert told.usage is not None
    assert (told.object, told.choices[0].finish_reason) == ("chat.completion", "stop")
    return told.choices[0].message.content, told.usage.total_tokens


async def streamed(client: openai.AsyncOpenAI, text: str, *, usage: bool) -> tuple[str, int | None]:
    """The words of a streamed answer, and its tokens where they were asked for."""
    words, tokens, ends = "", None, list[str]()
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    async for chunk in await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], temperature=0, stream=True, **more
    ):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            words += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
        tokens = chunk.usage.total_tokens if chunk.usage else tokens
    assert ends == ["stop"]
    return words, tokens


async def test_a_plain_answer_is_given_again_as_a_stream(official: tuple[openai.AsyncOpenAI, NumberingModel]) -> None:
    client, upstream = official
    assert await plainly(client, "hello") == ("answer 1", 7)
    assert await streamed(client, "hello", usage=True) == ("answer 1", 7)
    assert await streamed(client, "hello", usage=False) == ("answer 1", None)
    assert upstream.calls == 1


@pytest.mark.parametrize("usage", [True, False])
async def test_a_streamed_answer_is_given_again_plainly_with_its_tokens(
    official: tuple[openai.AsyncOpenAI, NumberingModel], usage: bool
) -> None:
    client, upstream = official
    first = await streamed(client, "hello", usage=usage)
    assert first == ("answer 1", 7 if usage else None)
    words, tokens = await plainly(client, "hello")
    assert words == "answer 1"
    assert tokens == 7 if usage else tokens > 0
    assert (await streamed(client, "hello", usage=True))[0] == "answer 1"
    assert upstream.calls == 1


async def test_a_stream_that_is_given_again_has_the_form_of_a_stream(tmp_path: Path) -> None:
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
async def test_other_endpoints_are_kept_each_for_itself(path: str, tmp_path: Path) -> None:
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


async def test_a_stream_that_was_cut_is_not_kept(tmp_path: Path) -> None:
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
async def test_an_error_is_not_kept(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path, later_attempts=1, now_attempts=1) as (server, upstream):
        token = await server.token()
        upstream.status = 500
        status, said, _ = await DOORS[door](server, token)
        assert (status, said, upstream.calls) == (500, None, 1)
        upstream.status = 200
        assert await DOORS[door](server, token) == (200, "answer 2", "miss")


# To whom


@pytest.mark.parametrize("door", DOORS)
async def test_no_user_ever_sees_another_users_answer(door: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        admin = await server.token("admin")
        assert await DOORS[door](server, ann) == (200, "answer 1", "miss")
        assert await DOORS[door](server, bob) == (200, "answer 2", "miss")
        assert await DOORS[door](server, admin) == (200, "answer 3", "miss")
        assert await DOORS[door](server, ann) == (200, "answer 1", "hit")
        assert await DOORS[door](server, bob) == (200, "answer 2", "hit")


async def test_with_no_keeper_does_a_user_see_anothers_answer(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        for door in (at_cached, at_openai):
            ours = await door(server, ann)
            theirs = await door(server, bob)
            assert (ours[2], theirs[2]) == ("miss", "miss")
            assert ours[1] != theirs[1]
            assert await door(server, bob) == (200, theirs[1], "hit")
        body = chat("hello", "m")
        for token, said in ((ann, "answer 1"), (bob, "answer 2")):
            _, found, _ = await ask(server, token, f"/api/cache{CHAT}", body)
            assert found == [{"response": said, "cache_hit": True}]
        stranger = await server.token(email="eve@example.com")
        assert (await ask(server, stranger, f"/api/cache{CHAT}", body))[1] == []


async def test_where_an_admin_shares_it_all_users_have_one_answer(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, cache_shared=True, **keeper) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        assert await at_cached(server, ann) == (200, "answer 1", "miss")
        assert await at_cached(server, bob) == (200, "answer 1", "hit")
        assert upstream.calls == 1
        # a member that is named twice means what its reader makes of it: nobody puts words into another's answers
        twice = (
            '{"model":"m","messages":[{"role":"user","content":"evil"}],"messages":[{"role":"user","content":"kind"}]}'
        )
        headers = {"authorization": f"Bearer {ann}"}
        async with server.http.post(f"{server.url}/api/openai{CHAT}", data=twice, headers=headers) as response:
            assert (await response.json())["response"] == "answer 2"
        assert await at_cached(server, bob, "kind") == (200, "answer 3", "miss")


async def test_what_one_server_shared_is_nobodys_once_it_is_not(tmp_path: Path) -> None:
    async with serving(tmp_path, cache_shared=True) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        await at_cached(server, ann)
        async with live(tmp_path) as strict:
            assert await at_cached(strict, bob) == (200, "answer 2", "miss")
        assert upstream.calls == 2


# What never is


async def test_what_is_held_or_refused_is_never_given(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        for number, verdict in enumerate(["fail", "cancel", None], 1):
            asking = asyncio.ensure_future(at_cached(server, token, prefer="wait=1" if verdict is None else "wait=30"))
            job = await held_job(server, reviewer)
            # while it is held nobody finds it
            assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            assert (await ask(server, reviewer, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            if verdict == "cancel":
                assert (await server.ask("DELETE", f"/api/jobs/{job['job_id']}", token))[0] == 200
            elif verdict is not None:
                await server.ask("POST", "/reviewJob", reviewer, json={"id": job["job_id"], "status": verdict})
            status, said, _ = await asking
            assert (status in {403, 409, 504}, said) == (True, None)
            # nor after it was refused, or while it still waits
            assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
            assert upstream.calls == number
        assert (await server.ask("GET", "/api/cache", await server.token("admin")))[1]["entries"] == 0


@pytest.mark.parametrize("edited", [None, "a person's words"])
async def test_what_a_person_signed_off_is_given_again_as_it_left(edited: str | None, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        for door in (at_openai, at_native):
            asking = asyncio.ensure_future(door(server, token, door.__name__))
            job = await held_job(server, reviewer)
            words = {} if edited is None else {"response": edited}
            review = {"id": job["job_id"], "status": "success"} | words
            assert (await server.ask("POST", "/reviewJob", reviewer, json=review))[0] == 200
            number = upstream.calls
            said = f"answer {number}" if edited is None else edited
            if door is at_openai or edited is None:
                assert await asking == (200, said, "miss")
                assert await door(server, token, door.__name__) == (200, said, "hit")
            else:  # the native door shows what stands there
                with contextlib.suppress(TypeError):
                    await asking
                wanted = {"target": "m", "body": chat("at_native", "m", temperature=0)}
                assert (await ask(server, token, "/api/jobs", wanted))[1]["response"] == edited
            assert upstream.calls == number


async def test_what_a_reviewer_asked_instead_is_no_answer_to_what_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        asking = asyncio.ensure_future(at_openai(server, token))
        first = await held_job(server, reviewer)
        redo = {"id": first["job_id"], "status": "bot", "payload": chat("other", "m", temperature=0)}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=redo))[0] == 200
        again = await server.job_when(
            reviewer, first["job_id"], lambda job: job["status"] == "human" and job["round"] == 2
        )
        await server.ask("POST", "/reviewJob", reviewer, json={"id": again["job_id"], "status": "success"})
        assert (await asking)[:2] == (200, "answer 2")
        assert (await server.ask("GET", f"/api/jobs/{first['job_id']}", token))[1]["cache"] == "bypass"
        for text in ("hello", "other"):
            body = chat(text, "m", temperature=0)
            assert (await ask(server, token, f"/api/cache{CHAT}", body))[1] == []


async def test_asked_again_unchanged_it_is_the_last_answer_that_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        asking = asyncio.ensure_future(at_openai(server, token))
        job_id = (await held_job(server, reviewer))["job_id"]
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "bot"})
        await server.job_when(reviewer, job_id, lambda job: job["status"] == "human" and job["round"] == 2)
        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success"})
        assert await asking == (200, "answer 2", "miss")
        assert await at_openai(server, token) == (200, "answer 2", "hit")


@pytest.mark.parametrize("door", [at_openai, at_cached, at_predict])
async def test_a_stricter_policy_is_not_bypassed_by_an_old_entry(door: Door, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token, reviewer = await server.token(), await server.token("reviewer")
        await door(server, token)
        assert (await door(server, token))[2] == "hit"
        await server.model("m", kind="openai", url=upstream.url, review="always")
        status, said, _ = await door(server, token, prefer="wait=0")
        assert (status, said) == (504, None)
        assert (await held_job(server, reviewer))["status"] == "human"
        # and when it is as it was, so are its answers
        await server.model("m", kind="openai", url=upstream.url)
        assert await door(server, token) == (200, "answer 1", "hit")


async def test_a_stricter_door_is_not_bypassed_by_an_old_entry(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_enqueue(server, token)
        async with live(tmp_path, enqueue_review="always") as strict:
            _, told, _ = await ask(strict, token, "/enqueue", chat("hello", "m", temperature=0))
            await strict.job_when(token, told["job_id"], lambda job: job["status"] == "human")


async def test_another_undo_or_deadline_is_another_policy(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_cached(server, token)
        for more in ({"undo_seconds": 5}, {"review_deadline_seconds": 5}):
            async with live(tmp_path, **more) as other:
                assert (await at_cached(other, token))[2] == "miss"


@pytest.mark.parametrize(
    "change", [{"url": "other"}, {"upstream_model": "better"}, {"attempts": 2}], ids=lambda change: next(iter(change))
)
async def test_a_changed_model_does_not_give_its_old_answers(change: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream), NumberingModel("other") as other:
        token, admin = await server.token(), await server.token("admin")
        assert await at_cached(server, token) == (200, "answer 1", "miss")
        told = {"url": other.url} if "url" in change else change
        assert (await server.ask("PATCH", "/api/models/m", admin, json=told))[0] == 200
        said = "other 1" if "url" in change else "answer 2"
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert await at_cached(server, token) == (200, said, "miss")
        assert upstream.calls + other.calls == 2


@pytest.mark.parametrize("door", [at_cached, at_native])
async def test_an_answer_of_a_model_that_was_changed_meanwhile_is_not_kept(door: Door, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream), NumberingModel("other") as other:
        token = await server.token()
        upstream.gate.clear()
        asking = asyncio.ensure_future(door(server, token))
        await upstream.received()
        await register_model(server.services, Model(name="m", kind="openai", url=other.url))
        upstream.gate.set()
        assert await asking == (200, "answer 1", "bypass")
        assert await door(server, token) == (200, "other 1", "miss")
        # as it was, it has no answers of the time between
        await register_model(server.services, Model(name="m", kind="openai", url=upstream.url))
        assert await door(server, token) == (200, "answer 2", "miss")


async def test_an_admins_try_of_a_model_is_neither_kept_nor_given_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("m", kind="openai", url=upstream.url, cache="always")
        admin = await server.token("admin")
        for _ in range(2):
            assert (await server.ask("POST", "/api/models/m", admin, json="hello"))[1]["ok"]
        assert upstream.calls == 2


# What the caller says


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


async def test_an_answer_may_be_too_old(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, _):
        token = await server.token()
        await at_cached(server, token)

        async def aged() -> bool | None:
            return (await at_cached(server, token, cache_control="max-age=1"))[2] == "miss" or None

        await until(aged)
        assert (await at_cached(server, token, cache_control="max-age=60"))[1] == "answer 2"


async def test_after_its_time_it_is_gone(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, cache_ttl_seconds=0.5, **keeper) as (server, upstream):
        token = await server.token()
        await at_cached(server, token)

        async def gone() -> bool | None:
            _, found, _ = await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m"))
            return found == [] or None

        await until(gone)
        assert (await at_cached(server, token))[1:] == ("answer 2", "miss")
        assert upstream.calls == 2


async def test_a_server_without_a_cache_asks_each_time(tmp_path: Path) -> None:
    async with serving(tmp_path, cache="none") as (server, upstream):
        token = await server.token("admin")
        for number in (1, 2):
            assert await at_cached(server, token) == (200, f"answer {number}", "bypass")
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert (await server.ask("GET", "/api/cache", token)) == (200, {"entries": 0, "size_bytes": 0})
        assert (await server.ask("DELETE", "/api/cache", token)) == (200, {"deleted": 0})
        assert upstream.calls == 2


# Names of requests


async def test_a_key_stands_for_its_job_whatever_the_cache_has(tmp_path: Path) -> None:
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
        status, told, _ = await ask(server, token, f"/api/openai{CHAT}", chat("other", "m"), idempotency_key="k")
        assert (status, told["code"]) == (422, "idempotency_key_reused")
        # and a key that stands for a job which goes on joins that one
        upstream.gate.clear()
        first = asyncio.ensure_future(at_cached(server, token, "new", idempotency_key="l", cache_control="no-cache"))
        await upstream.received(2)
        second = asyncio.ensure_future(at_cached(server, token, "new", idempotency_key="l"))
        upstream.gate.set()
        assert await first == await second == (200, "answer 2", "miss")


async def test_a_callers_own_id_is_one_job_whatever_the_cache_has(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_generate(server, token)
        asked = {"job_id": "mine", "meta": {"model": "m", "temperature": 0}, "content": "hello"}
        for _ in range(2):
            assert await ask(server, token, "/generate", asked) == (200, {"content": "answer 1"}, "hit")
        assert (await server.ask("GET", "/check_status?job_id=mine", token))[1]["job_status"] == "completed"
        assert (await server.ask("GET", "/api/jobs", token))[1]["total"] == 2
        assert (await ask(server, token, "/generate", asked | {"content": "other"}))[0] == 409


async def test_a_job_that_is_asked_again_is_asked_and_replaces_the_old_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        await at_native(server, token)
        _, page = await server.ask("GET", "/api/jobs", token)
        _, again = await server.ask("POST", f"/api/jobs/{page['data'][0]['job_id']}/retry", token)
        done = await server.job_when(token, again["job_id"], lambda job: job["status"] == "success")
        assert done["response"]["choices"][0]["message"]["content"] == "answer 2"
        assert await at_native(server, token) == (200, "answer 2", "hit")


# Many, and large ones


async def test_a_hundred_of_the_same_at_once_are_all_answered_and_one_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        said = await together(at_cached(server, token) for token in [ann, bob] * 50)
        assert {status for status, _, _ in said} == {200}
        anns, bobs = {words for _, words, _ in said[::2]}, {words for _, words, _ in said[1::2]}
        assert not anns & bobs
        asked = upstream.calls
        again = await together(at_cached(server, token) for token in [ann, bob] * 50)
        assert {cache for _, _, cache in again} == {"hit"}
        assert len({words for _, words, _ in again[::2]}) == len({words for _, words, _ in again[1::2]}) == 1
        assert {words for _, words, _ in again[::2]} <= anns
        assert upstream.calls == asked
        assert (await server.ask("GET", "/api/cache", ann))[1]["entries"] == 1


async def test_an_answer_of_a_megabyte_is_given_again_whole(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, upstream):
        upstream.padding = 1024 * 1024
        token = await server.token()
        status, first, cache = await at_cached(server, token)
        assert (status, cache, len(first or "")) == (200, "miss", 1024 * 1024 + len("answer 1"))
        assert await at_cached(server, token) == (200, first, "hit")
        async with live(tmp_path, **keeper) as other:
            is_shared = keeper.get("cache") != "memory"
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
async def test_hostile_bodies_are_answered_and_break_nothing(body: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        for path in (f"/api/openai{CHAT}", f"/api/cache{CHAT}", CHAT):
            headers = {"authorization": f"Bearer {token}"}
            for _ in range(2):
                async with server.http.post(server.url + path, data=body, headers=headers) as response:
                    assert response.status in {200, 400, 502}, await response.text()
        assert (await at_cached(server, token))[0] == 200


# When it is away


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[TcpProxy]:
    """A way to Redis that can be cut."""
    async with TcpProxy(redis_url) as proxy:
        yield proxy


async def test_while_redis_is_away_models_are_asked_and_it_heals(tmp_path: Path, wire: TcpProxy, prefix: str) -> None:
    async with serving(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as (server, upstream):
        token = await server.token()
        await at_cached(server, token, "before")
        # when it is gone: what this process has at hand is given, all else is asked
        await wire.shut()
        assert (await at_cached(server, token, "before"))[2] == "hit"
        said = await together(at_cached(server, token, f"while {number}") for number in range(20))
        assert {(status, cache) for status, _, cache in said} == {(200, "miss")}
        assert await ask(server, token, f"/api/cache{CHAT}", chat("nobody", "m")) == (200, [], None)
        assert (await server.ask("GET", "/health/ready"))[0] == 200
        status, told = await server.ask("DELETE", "/api/cache", token)
        assert (status, told["code"]) == (503, "overloaded")
        # then it is used again soon after it has come back
        await wire.open()

        async def is_back() -> bool | None:
            await at_cached(server, token, "after", cache_control="no-cache")
            status, told = await server.ask("GET", "/api/cache", token)
            return (status == 200 and told["entries"] > 1) or None

        await until(is_back)
        async with live(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as other:
            assert (await at_cached(other, token, "after"))[2] == "hit"
        assert upstream.calls >= 22


async def test_a_silent_redis_holds_up_nobody_for_long(
    tmp_path: Path, wire: TcpProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_SECONDS", HURRY_SECONDS)
    async with serving(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as (server, _):
        token = await server.token()
        await at_openai(server, token, "before")
        wire.block()
        async with asyncio.timeout(60):
            said = await together(at_openai(server, token, f"while {number}") for number in range(50))
        assert {(status, cache) for status, _, cache in said} == {(200, "miss")}
        wire.unblock()

        async def is_back() -> bool | None:
            await at_openai(server, token, "after", cache_control="no-cache")
            async with live(tmp_path, cache="redis", redis_url=wire.url, redis_prefix=prefix) as other:
                return (await at_openai(other, token, "after"))[2] == "hit" or None

        await until(is_back)


async def test_a_redis_that_was_emptied_is_an_empty_cache(tmp_path: Path, redis_url: str, prefix: str) -> None:
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


# Forgetting


@pytest.fixture(params=["sql", "redis"])
def shared(request: pytest.FixtureRequest, prefix: str) -> dict[str, Any]:
    """Return the settings of a cache that processes have together."""
    if request.param == "sql":
        return {}
    return {"cache": "redis", "redis_url": request.getfixturevalue("redis_url"), "redis_prefix": prefix}


async def test_a_user_forgets_their_own_and_an_admin_anybodys(shared: dict[str, Any], tmp_path: Path) -> None:
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
            _, page = await server.ask("GET", "/api/jobs", admin)
            theirs = (await server.ask("GET", "/api/jobs", ann))[1]["data"]
            return theirs[0] if page["total"] == jobs and theirs else None

        job = await until(all_written)
        key = job["cache_key"]

        # others' are out of reach
        assert (await server.ask("DELETE", "/api/cache?user=ann@example.com", bob))[0] == 403
        assert (await server.ask("GET", "/api/cache?user=ann@example.com", bob))[0] == 403
        assert (await server.ask("DELETE", f"/api/cache?key={key}", bob)) == (200, {"deleted": 0})
        # one, some, all
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
        # the jobs stay as they are
        assert (await server.ask("GET", "/api/jobs", admin))[1]["total"] >= jobs
        assert (await server.ask("GET", f"/api/jobs/{job['job_id']}", ann))[1]["response"]


async def test_who_forgets_their_own_leaves_all_others_theirs(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, _):
        ann, bob = await server.token(email="ann@example.com"), await server.token(email="bob@example.com")
        await at_cached(server, ann)
        await at_cached(server, bob)
        assert (await server.ask("DELETE", "/api/cache?key=nonesuch", bob)) == (200, {"deleted": 0})
        assert (await at_cached(server, bob))[2] == "hit"
        assert (await server.ask("DELETE", "/api/cache", bob)) == (200, {"deleted": 1})
        assert [(await at_cached(server, token))[2] for token in (ann, bob)] == ["hit", "miss"]


async def test_what_is_deleted_is_forgotten_by_every_process(keeper: dict[str, Any], tmp_path: Path) -> None:
    async with serving(tmp_path, **keeper) as (server, _), live(tmp_path, **keeper) as other:
        token = await server.token("admin" if keeper.get("cache") == "memory" else "user")
        for one in (server, other):
            await at_cached(one, token)
            assert (await at_cached(one, token))[2] == "hit"
        assert (await server.ask("DELETE", "/api/cache", token))[0] == 200
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []

        async def is_gone() -> bool | None:
            return (await ask(other, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == [] or None

        await until(is_gone)


# The door


async def test_the_documents_own_examples_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        await server.model("gpt-3.5-turbo-1106", kind="openai", url=upstream.url)
        token = await server.token()
        question = [{"role": "user", "content": "Is blue a color for blind?"}]
        body = {"model": "gpt-3.5-turbo-1106", "messages": question}
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

        async def post(path: str) -> Any:
            async with server.http.post(server.url + path, data=json.dumps(body, indent=4), headers=headers) as told:
                assert (told.status, told.content_type) == (200, "application/json")
                return await told.json()

        assert await post("/api/cache/v1/chat/completions/") == []
        assert await post("/api/openai/v1/chat/completions/") == {"response": "answer 1", "cache_hit": False}
        assert await post("/api/openai/v1/chat/completions/") == {"response": "answer 1", "cache_hit": True}
        assert await post("/api/openai/v1/chat/completions") == {"response": "answer 1", "cache_hit": True}
        assert await post("/api/cache/v1/chat/completions/") == [{"response": "answer 1", "cache_hit": True}]
        assert await post("/api/cache/v1/chat/completions") == [{"response": "answer 1", "cache_hit": True}]
        body = {"model": "gpt-3.5-turbo-1106", "input": "What day of the wek is it?", "instruction": "Fix it"}
        assert await post("/api/openai/v1/edits/") == {"response": "answer 2", "cache_hit": False}
        assert await post("/api/cache/v1/edits/") == [{"response": "answer 2", "cache_hit": True}]


async def test_looking_asks_no_model_and_leaves_no_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        assert (await ask(server, token, f"/api/cache{CHAT}", chat("hello", "m")))[1] == []
        assert upstream.calls == 0
        assert (await server.ask("GET", "/api/jobs", token))[1]["total"] == 0


async def test_an_answer_without_words_is_given_as_it_is(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"model": "echo", "input": "hello"}
        _, told, _ = await ask(server, token, "/api/openai/v1/embeddings", body)
        _, again, _ = await ask(server, token, "/api/openai/v1/embeddings", body)
        assert told["response"]["data"][0]["embedding"]
        assert (told["cache_hit"], again) == (False, told | {"cache_hit": True})


async def test_a_stream_is_given_as_its_words(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        token = await server.token()
        body = chat("hello", "m", stream=True)
        for hit in (False, True):
            told = (await ask(server, token, f"/api/openai{CHAT}", body))[1]
            assert told == {"response": "answer 1", "cache_hit": hit}


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
        ("POST", f"/api/openai{CHAT}", b'{"model":"echo/status=418"}', 418, "model_error"),
        ("POST", f"/api/openai{CHAT}", b'{"model":"echo/status=503"}', 503, "model_error"),
    ],
)
async def test_errors_have_a_detail_and_a_models_own_status(
    method: str, path: str, body: bytes, status: int, code: str, tmp_path: Path
) -> None:
    async with live(tmp_path, now_attempts=1) as server:
        got, told = await server.ask(method, path, await server.token(), data=body)
        assert (got, told["code"], bool(told["detail"])) == (status, code, True)
        got, told = await server.ask(method, path, None, data=body)
        assert (got, told["code"]) == (401, "unauthorized")


async def test_a_caller_who_leaves_stops_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, upstream):
        token = await server.token()
        upstream.gate.clear()
        asking = asyncio.ensure_future(at_cached(server, token))
        await upstream.received()
        asking.cancel()

        async def cancelled() -> bool | None:
            _, page = await server.ask("GET", "/api/jobs?status=fail", token)
            return (bool(page["data"]) and page["data"][0]["error"]["code"] == "cancelled") or None

        await until(cancelled)
        assert (await server.ask("GET", "/api/cache", token))[1]["entries"] == 0
