"""Pass-through to routes that only the upstream knows, and who may use the objects that are stored there."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from yarl import URL

from fakes.behaviours import SOUND, SPOKEN
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Caller
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, client, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


async def ask(server: Live, token: str, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """Return the status and the JSON of a request whose path is sent without further encoding."""
    headers = {"authorization": f"Bearer {token}"} | more.pop("headers", {})
    async with server.http.request(method, URL(server.url + path, encoded=True), headers=headers, **more) as response:
        body = await response.read()
        return response.status, json.loads(body) if body else None


async def made(server: Live, token: str, **more: Any) -> str:
    """Create a response at the model `mine`, and return its id."""
    status, told = await ask(server, token, "POST", "/v1/responses", json={"model": "mine", "input": "hello"} | more)
    assert status == 200
    return told["id"]


def escaped(name: str) -> str:
    """Return the name with every letter as a JSON escape."""
    return "".join(f"\\u{ord(letter):04X}" for letter in name)


async def jobs(server: Live, **more: Any) -> list[Job]:
    return await server.services.store.jobs.list(JobFilter(**more))


async def a_held(server: Live) -> Job | None:
    found = await jobs(server, status="human")
    return found[0] if found else None


async def keeper(server: Live, fake: FakeUpstream, **more: Any) -> None:
    await server.model("mine", kind="openai", url=fake.at("keep"), **more)


REQUESTS = [
    ("GET", "/v1/vector_stores?limit=2&include[]=a%5B%5D&x=%2F+y"),
    ("GET", "/v1/chat/completions"),
    ("GET", "/v1/responses/resp_9?stream=false"),
    ("DELETE", "/v1/responses/resp_9"),
    ("POST", "/v1/responses/resp_9/cancel"),
    ("POST", "/v1/vector_stores?beta=true"),
    ("PUT", "/v1/things/a1"),
    ("PATCH", "/v1/things/a1?deep=1"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize("body", [None, b'{ "a":1.50 }'])
async def test_every_method_and_query_reaches_the_upstream_as_it_came(
    method: str, path: str, body: bytes | None, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        token = await server.token("admin")
        status, told = await ask(server, token, method, path, data=body)
        assert (status, told["was"]) == (200, f"{method} /keep{path}")
        (seen,) = fake.requests
        assert (seen.method, seen.path, seen.body) == (method, f"/keep{path}", body or b"")
        assert seen.headers.get("content-type") == (body and "application/json")
        (job,) = await until(lambda: all_ended(server, 1))
        assert (job.path, job.body) == (("" if method == "POST" else f"{method} ") + path, body or b"null")
        assert job.model == "mine"


@pytest.mark.parametrize("how", ["header", "query", "body"])
async def test_the_upstream_is_the_one_that_the_request_names(how: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake)
        token = await server.token("admin")
        headers = {"x-signoff-model": "mine"} if how == "header" else {}
        query = "?model=mine&limit=1" if how == "query" else "?limit=1"
        body = {"model": "mine"} if how == "body" else None
        status, told = await ask(server, token, "POST", f"/v1/things{query}", headers=headers, json=body)
        assert (status, told["was"]) == (200, "POST /keep/v1/things?limit=1")


async def test_the_official_client_finds_its_responses_at_the_model_that_made_them(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await keeper(server, fake)
        await server.model("other", kind="openai", url=fake.at("html"), default=True)
        for stream in (False, True):
            answer = await ai.responses.create(model="mine", input="hello", stream=stream)
            name = [event async for event in answer][-1].response.id if stream else answer.id
            assert (await ai.responses.retrieve(name)).id == name
            await ai.responses.input_items.list(name)
            await ai.responses.cancel(name)
            await ai.responses.delete(name)
            again = await ai.responses.create(model="mine", input="and?", previous_response_id=name)
            assert again.output_text == "kept"
            paths = [f"{seen.method} {seen.path.removeprefix('/keep/v1/responses')}" for seen in fake.requests]
            below = ["GET /{}", "GET /{}/input_items", "POST /{}/cancel", "DELETE /{}"]
            assert paths == ["POST ", *(each.format(name) for each in below), "POST "]
            fake.requests.clear()


async def test_what_a_fallback_made_is_found_there(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake)
        await server.model("first", kind="openai", url=fake.at("broken"), attempts=1, fallbacks=("mine",))
        token = await server.token()
        name = await made(server, token, model="first")
        fake.requests.clear()
        assert (await ask(server, token, "GET", f"/v1/responses/{name}"))[0] == 200
        assert [seen.path for seen in fake.requests] == [f"/keep/v1/responses/{name}"]


STEPS = [
    ("GET", "/v1/responses/{}"),
    ("GET", "/v1/responses/{}/input_items"),
    ("GET", "/openai/v1/responses/{}/?model=mine"),
    ("POST", "/v1/responses/{}/cancel"),
    ("DELETE", "/v1/responses/{}"),
]
BODIES: list[dict[str, Any]] = [
    {"previous_response_id": "{}"},
    {"conversation": "{}"},
    {"conversation": {"id": "{}"}},
    {"tools": [{"type": "file_search", "vector_store_ids": ["{}"]}]},
    {"conversation": 1, "previous_response_id": "{}"},
    {"parcel": {"content_type": "a", "content": ""}, "previous_response_id": "{}"},
]


async def test_nobody_reaches_what_somebody_else_made_at_the_upstream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake)
        name = await made(server, await server.token(email="alice@example.com"))
        bob, rita = await server.token(email="bob@example.com"), await server.token("reviewer")
        asked = len(fake.requests)
        # when others name it at this door or at the native door, in a path or in a body
        for token in (bob, rita):
            answers = [await ask(server, token, method, path.format(name)) for method, path in STEPS]
            for body, named in itertools.product(BODIES, (name, escaped(name))):
                told = json.dumps(body | {"model": "mine", "input": "hello"}).replace("{}", named)
                answers.append(await ask(server, token, "POST", "/v1/responses", data=told))
                native = f'{{"path": "/v1/responses", "target": "mine", "body": {told}}}'
                answers.append(await ask(server, token, "POST", "/api/jobs", data=native))
            native = {"path": f"GET /v1/responses/{name}", "target": "mine", "body": None}
            answers.append(await ask(server, token, "POST", "/api/jobs", json=native))
            # then they get a 404, and the upstream gets no request
            assert {status for status, _ in answers} == {404}
        assert len(fake.requests) == asked
        # and an admin may use it
        assert (await ask(server, await server.token("admin"), "GET", f"/v1/responses/{name}"))[0] == 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("kind", ["application/json", "audio/mpeg"])
async def test_nobody_reaches_it_in_a_parcel(kind: str, encoding: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        name = await made(server, await server.token(email="alice@example.com"))
        bob, asked = await server.token(email="bob@example.com"), len(fake.requests)
        form = f'--b\r\nContent-Disposition: form-data; name="thread_id"\r\n\r\n{name}\r\n--b--\r\n'
        for content in (f'{{"thread_id":"{name}"}}', f'{{"thread_id":"{escaped(name)}"}}', form):
            binary = encode_binary(BinaryBody(kind, content.encode(encoding)))
            assert (await ask(server, bob, "POST", "/v1/threads/runs", data=binary))[0] == 404
        assert len(fake.requests) == asked


@pytest.mark.parametrize("below", ["", "/search", "/files/file-1"])
async def test_an_id_may_be_a_word(below: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("mirror"), default=True)
        alice, bob = await server.token(email="alice@example.com"), await server.token(email="bob@example.com")
        assert (await ask(server, alice, "POST", "/v1/vector_stores", json={"id": "mynotes"}))[0] == 200
        assert (await ask(server, bob, "POST", "/v1/things", json={"id": "file-1"}))[0] == 200
        asked = len(fake.requests)
        assert (await ask(server, bob, "POST", f"/v1/vector_stores/mynotes{below}", json={}))[0] == 404
        assert len(fake.requests) == asked
        assert (await ask(server, alice, "POST", f"/v1/vector_stores/mynotes{below}", json={}))[0] == 200


async def test_what_nobody_made_here_is_for_admins(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        token = await server.token()
        assert (await ask(server, token, "GET", "/v1/responses/resp_1"))[0] == 404
        status, told = await ask(server, token, "GET", "/v1/vector_stores")
        assert (status, told["error"]["code"]) == (403, "forbidden")
        assert not fake.requests


async def test_what_was_made_belongs_to_the_first_who_made_it(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        # given an upstream where callers choose ids, and two callers who choose the same one
        await server.model("mine", kind="openai", url=fake.at("mirror"), default=True)
        alice, bob = await server.token(email="alice@example.com"), await server.token(email="bob@example.com")
        for token in (alice, bob):
            assert (await ask(server, token, "POST", "/v1/vector_stores", json={"id": "mine1"}))[0] == 200
        assert (await ask(server, alice, "PUT", "/v1/vector_stores/mine1", json={}))[0] == 200
        assert (await ask(server, bob, "PUT", "/v1/vector_stores/mine1", json={}))[0] == 404


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the address of a database that two processes share; None for the file in their folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


async def test_an_id_is_known_at_every_process_as_soon_as_its_caller_knows_it(
    database_url: str | None, tmp_path: Path
) -> None:
    both = {"database_url": database_url}
    async with fake_upstream() as fake, live(tmp_path, **both) as server, live(tmp_path, **both) as other:
        await keeper(server, fake)
        token = await server.token()
        for _ in range(20):
            name = await made(server, token)
            assert (await ask(other, token, "GET", f"/v1/responses/{name}"))[0] == 200


async def test_a_response_whose_reader_left_is_still_theirs(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake)
        token = await server.token()
        body = {"model": "mine", "input": "speak, and hang", "stream": True, "background": True}
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(server.url + "/v1/responses", json=body, headers=headers) as response:
            await fake.until_stuck()
            assert b"response.created" in await response.content.readany()
            response.close()
        await until(lambda: all_ended(server, 1))
        assert (await ask(server, token, "GET", "/v1/responses/resp_1Kept"))[0] == 200


async def test_what_was_held_leaves_by_no_other_way(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, review="always")
        await server.model("hasty", kind="openai", url=fake.at("keep"), review="never")
        token = await server.token()
        # given a response that was approved
        asking = asyncio.ensure_future(made(server, token))
        job = await until(lambda: a_held(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        name = await asking
        # when the owner fetches the copy of the upstream, or refers to it in a call of another model
        told = {"model": "hasty", "input": "What did you say?", "previous_response_id": name}
        for again in (
            ask(server, token, "GET", f"/v1/responses/{name}", headers={"prefer": "wait=0"}),
            ask(server, token, "POST", "/v1/responses", json=told, headers={"prefer": "wait=0"}),
        ):
            # then that answer is held, too
            status, answer = await again
            assert (status, answer["error"]["code"]) == (504, "review_pending")


@pytest.mark.parametrize(
    ("behaviour", "kind", "whole"),
    [("spoken", "text/event-stream", b"".join(SPOKEN)), ("speech", "audio/mpeg", SOUND)],
)
async def test_a_stream_that_only_its_upstream_knows_is_given_as_it_came(
    behaviour: str, kind: str, whole: bytes, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path, keep_alive_seconds=0.05) as server:
        url, token = fake.at(behaviour), await server.token()
        await server.model("quick", kind="openai", url=url)
        await server.model("held", kind="openai", url=url, review="always")

        async def heard(model: str, **headers: str) -> tuple[str, bytes]:
            body = {"model": model, "input": "hello", "stream": True}
            told = {"authorization": f"Bearer {token}"} | headers
            async with server.http.post(server.url + "/v1/audio/speech", json=body, headers=told) as response:
                first, rest = await response.content.readexactly(1), await response.read()
                # A slow machine may add comments to a stream of events, but never before its first byte.
                return response.content_type, first + rest.replace(b": still at work\n\n", b"")

        async def has_waited() -> bool | None:
            return asyncio.get_running_loop().time() > held_since + 0.2 or None

        # when the answer is new, when its key is sent again, and when the answer was held
        for _ in range(2):
            assert await heard("quick", **{"idempotency-key": "k"}) == (kind, whole)
        asking = asyncio.ensure_future(heard("held"))
        job = await until(lambda: a_held(server))
        held_since = asyncio.get_running_loop().time()
        await until(has_waited)
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert await asking == (kind, whole)


async def test_what_was_refused_cannot_be_fetched_at_its_upstream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, review="always")
        token = await server.token()
        asked = {"model": "mine", "input": "hello"}
        asking = asyncio.ensure_future(ask(server, token, "POST", "/v1/responses", json=asked))
        job = await until(lambda: a_held(server))
        assert job.upstream_object_id == "resp_1Kept"
        for verdict in (None, "reject"):
            if verdict:
                await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="reject", reason="no"))
            assert (await ask(server, token, "GET", "/v1/responses/resp_1Kept"))[0] == 404
        assert (await asking)[0] == 403


async def test_what_was_answered_before_costs_no_tokens_again(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake)
        token = await server.token()
        name = await made(server, token)
        await ask(server, token, "POST", f"/v1/responses/{name}/cancel")
        first, second = await until(lambda: all_ended(server, 2))
        assert first.usage is not None
        assert (first.usage.total_tokens, second.prompt_tokens, second.completion_tokens) == (5, 0, 0)


async def test_what_was_made_before_is_asked_for_each_time_whatever_is_kept(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, cache="always")
        token = await server.token()
        name = await made(server, token)
        for _ in range(2):
            assert (await ask(server, token, "GET", f"/v1/responses/{name}"))[0] == 200
            assert (await ask(server, token, "DELETE", f"/v1/responses/{name}"))[0] == 200
        assert [seen.method for seen in fake.requests] == ["POST", "GET", "DELETE", "GET", "DELETE"]


async def test_an_answer_without_a_body_is_one(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("gone"), default=True)
        assert await ask(server, await server.token("admin"), "DELETE", "/v1/things/a1") == (200, None)


@pytest.mark.parametrize("kind", ["http", "echo"])
async def test_a_model_that_has_nothing_there_says_so(kind: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind=kind, url=fake.at("answer") if kind == "http" else None, default=True)
        status, told = await ask(server, await server.token("admin"), "GET", "/v1/things")
        assert status == 404
        assert "mine" in told["error"]["message"] or "/v1/things" in told["error"]["message"]
        assert not fake.requests


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("GET", "/v1/a.b/c"),
        ("GET", "/v1/a/../../admin"),
        ("GET", "/v1/things?" + "x" * 5000),
        ("TRACE", "/v1/things"),
        ("SEARCH", "/v1/things"),
    ],
)
async def test_what_cannot_pass_is_not_found(method: str, path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        status, told = await ask(server, await server.token("admin"), method, path)
        assert status in {400, 404}
        assert told["error"]["code"] in {"not_found", "bad_request"}
        assert not fake.requests


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/embeddings"), ("DELETE", "/v1/completions"), ("DELETE", "/v1/models/echo")]
)
async def test_a_known_path_refuses_other_methods(method: str, path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        status, told = await ask(server, await server.token("admin"), method, path)
        assert (status, told["error"]["code"]) == (405, "method_not_allowed")
        assert not fake.requests


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "GET /v1/uploads/upload_1", "DELETE /v1/models/echo"])
async def test_what_is_kept_here_passes_through_no_other_door_either(path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await keeper(server, fake, default=True)
        body = {"path": path, "body": {"model": "mine"}}
        assert (await ask(server, await server.token("admin"), "POST", "/api/jobs", json=body))[0] == 400
        assert not await jobs(server)
        assert not fake.requests


async def test_a_head_of_the_models_is_their_answer_without_its_body(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        assert await ask(server, await server.token(), "HEAD", "/v1/models") == (200, None)
        assert await ask(server, await server.token(), "HEAD", "/v1/models/echo/") == (200, None)


async def test_a_chat_is_looked_up_nowhere(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:

        async def unasked(*_: object) -> list[Job]:
            raise AssertionError

        server.services.store.jobs.list = unasked  # type: ignore[method-assign]
        answer = await ai.chat.completions.create(**chat('{"x": "resp_1234"}'))
        assert "resp_1234" in (answer.choices[0].message.content or "")
        with pytest.raises(openai.InternalServerError):
            await ai.with_options(max_retries=0).responses.create(
                model="echo", input="a", previous_response_id="resp_1"
            )


async def all_ended(server: Live, count: int) -> list[Job] | None:
    found = await jobs(server)
    return found if len(found) == count and all(job.is_terminal for job in found) else None
