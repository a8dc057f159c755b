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


async def create_response(server: Live, token: str, **more: Any) -> str:
    """Create a response at the model `mine`, and return its id."""
    status, response = await ask(
        server, token, "POST", "/v1/responses", json={"model": "mine", "input": "hello"} | more
    )
    assert status == 200
    return response["id"]


def escaped(name: str) -> str:
    """Return the name with every letter as a JSON escape."""
    return "".join(f"\\u{ord(letter):04X}" for letter in name)


async def list_jobs(server: Live, **more: Any) -> list[Job]:
    return await server.services.store.jobs.list(JobFilter(**more))


async def held_job(server: Live) -> Job | None:
    jobs = await list_jobs(server, status="human")
    return jobs[0] if jobs else None


async def add_model(server: Live, fake: FakeUpstream, **more: Any) -> None:
    await server.model("mine", kind="openai", url=fake.at("keep"), **more)


REQUESTS = [
    ("GET", "/v1/vector_stores?limit=2&include[]=a%5B%5D&x=%2F+y"),
    ("GET", "/v1/chat/completions/cc_9"),
    ("GET", "/v1/responses/resp_9?stream=false"),
    ("DELETE", "/v1/responses/resp_9"),
    ("POST", "/v1/responses/resp_9/cancel"),
    ("POST", "/v1/vector_stores?beta=true"),
    ("PUT", "/v1/things/a1"),
    ("PATCH", "/v1/things/a1?deep=1"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize("body", [None, b'{ "a":1.50 }'])
async def test_every_method_and_query_reaches_the_upstream_unchanged(
    method: str, path: str, body: bytes | None, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        token = await server.token("admin")
        status, response = await ask(server, token, method, path, data=body)
        assert (status, response["was"]) == (200, f"{method} /keep{path}")
        (request,) = fake.requests
        assert (request.method, request.path, request.body) == (method, f"/keep{path}", body or b"")
        assert request.headers.get("content-type") == (body and "application/json")
        (job,) = await until(lambda: all_ended(server, 1))
        assert (job.path, job.body) == (("" if method == "POST" else f"{method} ") + path, body or b"null")
        assert job.model == "mine"


@pytest.mark.parametrize("how", ["header", "query", "body"])
async def test_a_request_names_its_upstream(how: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake)
        token = await server.token("admin")
        headers = {"x-signoff-model": "mine"} if how == "header" else {}
        query = "?model=mine&limit=1" if how == "query" else "?limit=1"
        body = {"model": "mine"} if how == "body" else None
        status, response = await ask(server, token, "POST", f"/v1/things{query}", headers=headers, json=body)
        assert (status, response["was"]) == (200, "POST /keep/v1/things?limit=1")


async def test_the_official_client_finds_its_responses_at_the_model_that_made_them(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await add_model(server, fake)
        await server.model("other", kind="openai", url=fake.at("html"), default=True)
        for stream in (False, True):
            answer = await ai.responses.create(model="mine", input="hello", stream=stream)
            response_id = [event async for event in answer][-1].response.id if stream else answer.id
            assert (await ai.responses.retrieve(response_id)).id == response_id
            await ai.responses.input_items.list(response_id)
            await ai.responses.cancel(response_id)
            await ai.responses.delete(response_id)
            again = await ai.responses.create(model="mine", input="and?", previous_response_id=response_id)
            assert again.output_text == "kept"
            paths = [f"{request.method} {request.path.removeprefix('/keep/v1/responses')}" for request in fake.requests]
            below = ["GET /{}", "GET /{}/input_items", "POST /{}/cancel", "DELETE /{}"]
            assert paths == ["POST ", *(each.format(response_id) for each in below), "POST "]
            fake.requests.clear()


async def test_an_object_that_a_fallback_stored_is_found_there(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake)
        await server.model("first", kind="openai", url=fake.at("broken"), attempts=1, fallbacks=("mine",))
        token = await server.token()
        response_id = await create_response(server, token, model="first")
        fake.requests.clear()
        assert (await ask(server, token, "GET", f"/v1/responses/{response_id}"))[0] == 200
        assert [request.path for request in fake.requests] == [f"/keep/v1/responses/{response_id}"]


OBJECT_ROUTES = [
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


async def test_an_object_at_the_upstream_is_hidden_from_other_users(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake)
        response_id = await create_response(server, await server.token(email="alice@example.com"))
        bob, rita = await server.token(email="bob@example.com"), await server.token("reviewer")
        request_count = len(fake.requests)
        # when others name it at this door or at the native door, in a path or in a body
        for token in (bob, rita):
            answers = [await ask(server, token, method, path.format(response_id)) for method, path in OBJECT_ROUTES]
            for body, spelling in itertools.product(BODIES, (response_id, escaped(response_id))):
                data = json.dumps(body | {"model": "mine", "input": "hello"}).replace("{}", spelling)
                answers.append(await ask(server, token, "POST", "/v1/responses", data=data))
                native = f'{{"path": "/v1/responses", "target": "mine", "body": {data}}}'
                answers.append(await ask(server, token, "POST", "/api/jobs", data=native))
            native = {"path": f"GET /v1/responses/{response_id}", "target": "mine", "body": None}
            answers.append(await ask(server, token, "POST", "/api/jobs", json=native))
            # then they get a 404, and the upstream gets no request
            assert {status for status, _ in answers} == {404}
        assert len(fake.requests) == request_count
        # and an admin may use it
        assert (await ask(server, await server.token("admin"), "GET", f"/v1/responses/{response_id}"))[0] == 200


async def test_the_items_of_an_answer_are_hidden_from_other_users(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("remember"), default=True)
        alice, bob = await server.token(email="alice@example.com"), await server.token(email="bob@example.com")
        _, answer = await ask(server, alice, "POST", "/v1/responses", json={"input": "my secret"})
        item = answer["output"][0]["id"]
        request_count = len(fake.requests)
        bodies: list[dict[str, Any]] = [
            {"input": [{"type": "item_reference", "id": item}]},
            {"input": "x", "after": item},
            {"input": [{"id": item.replace("msg", "\\u006dsg")}]},
        ]
        for body in bodies:
            data = json.dumps(body).replace("\\\\u", "\\u")
            assert (await ask(server, bob, "POST", "/v1/responses", data=data))[0] == 404
            assert (await ask(server, bob, "POST", "/v1/audio/speech", data=data))[0] == 404
        assert (await ask(server, bob, "POST", f"/v1/audio/speech?after={item}", json={}))[0] == 404
        assert (await ask(server, bob, "POST", f"/v1/responses/{answer['id']}/items/{item}", json={}))[0] == 404
        assert len(fake.requests) == request_count
        assert (await ask(server, alice, "POST", "/v1/responses", json=bodies[0]))[0] == 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("kind", ["application/json", "audio/mpeg"])
async def test_an_object_is_hidden_from_other_users_in_a_binary_body(kind: str, encoding: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        response_id = await create_response(server, await server.token(email="alice@example.com"))
        bob, request_count = await server.token(email="bob@example.com"), len(fake.requests)
        form = f'--b\r\nContent-Disposition: form-data; name="thread_id"\r\n\r\n{response_id}\r\n--b--\r\n'
        for content in (f'{{"thread_id":"{response_id}"}}', f'{{"thread_id":"{escaped(response_id)}"}}', form):
            binary = encode_binary(BinaryBody(kind, content.encode(encoding)))
            assert (await ask(server, bob, "POST", "/v1/threads/runs", data=binary))[0] == 404
        assert len(fake.requests) == request_count


@pytest.mark.parametrize("below", ["", "/search", "/files/file-1"])
async def test_an_object_whose_id_is_a_plain_word_is_protected(below: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("mirror"), default=True)
        alice, bob = await server.token(email="alice@example.com"), await server.token(email="bob@example.com")
        assert (await ask(server, alice, "POST", "/v1/vector_stores", json={"id": "mynotes"}))[0] == 200
        assert (await ask(server, bob, "POST", "/v1/containers", json={"id": "file-1"}))[0] == 200
        request_count = len(fake.requests)
        assert (await ask(server, bob, "POST", f"/v1/vector_stores/mynotes{below}", json={}))[0] == 404
        assert len(fake.requests) == request_count
        # a file of somebody else is hidden wherever the path names it
        expected = 404 if "file-1" in below else 200
        assert (await ask(server, alice, "POST", f"/v1/vector_stores/mynotes{below}", json={}))[0] == expected


async def test_objects_that_signoff_does_not_know_are_for_admins(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        token = await server.token()
        assert (await ask(server, token, "GET", "/v1/responses/resp_1"))[0] == 404
        status, response = await ask(server, token, "GET", "/v1/vector_stores")
        assert (status, response["error"]["code"]) == (403, "forbidden")
        assert not fake.requests


async def test_an_object_belongs_to_its_first_creator(tmp_path: Path) -> None:
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


async def test_an_id_is_known_to_every_process_as_soon_as_its_caller_knows_it(
    database_url: str | None, tmp_path: Path
) -> None:
    both = {"database_url": database_url}
    async with fake_upstream() as fake, live(tmp_path, **both) as server, live(tmp_path, **both) as other:
        await add_model(server, fake)
        token = await server.token()
        for _ in range(20):
            response_id = await create_response(server, token)
            assert (await ask(other, token, "GET", f"/v1/responses/{response_id}"))[0] == 200


async def test_a_response_belongs_to_its_caller_even_after_a_disconnect(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake)
        token = await server.token()
        body = {"model": "mine", "input": "speak, and hang", "stream": True, "background": True}
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(server.url + "/v1/responses", json=body, headers=headers) as response:
            await fake.until_stuck()
            assert b"response.created" in await response.content.readany()
            response.close()
        await until(lambda: all_ended(server, 1))
        assert (await ask(server, token, "GET", "/v1/responses/resp_1Kept"))[0] == 200


async def test_a_copy_of_a_held_response_is_held_too(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, review="always")
        await server.model("hasty", kind="openai", url=fake.at("keep"), review="never")
        token = await server.token()
        # given a response that was approved
        call = asyncio.ensure_future(create_response(server, token))
        job = await until(lambda: held_job(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        response_id = await call
        # when the owner fetches the copy of the upstream, or refers to it in a call of another model
        body = {"model": "hasty", "input": "What did you say?", "previous_response_id": response_id}
        for request in (
            ask(server, token, "GET", f"/v1/responses/{response_id}", headers={"prefer": "wait=0"}),
            ask(server, token, "POST", "/v1/responses", json=body, headers={"prefer": "wait=0"}),
        ):
            # then that answer is held, too
            status, answer = await request
            assert (status, answer["error"]["code"]) == (504, "review_pending")


async def test_a_short_id_that_a_held_job_names_is_held_and_the_names_of_members_are_not(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, review="always")
        await server.model("hasty", kind="openai", url=fake.at("keep"), review="never")
        token = await server.token()
        for model, thread_id, expected in (("mine", "1", 504), ("hasty", "1", 504), ("hasty", "2", 200)):
            body = {"model": model, "input": "hi", "metadata": {"thread_id": thread_id}, "tools": [{"file_ids": []}]}
            status, _ = await ask(server, token, "POST", "/v1/responses", json=body, headers={"prefer": "wait=0"})
            assert status == expected


@pytest.mark.parametrize(
    ("behaviour", "kind", "whole"),
    [("spoken", "text/event-stream", b"".join(SPOKEN)), ("speech", "audio/mpeg", SOUND)],
)
async def test_a_stream_in_an_unknown_format_passes_byte_for_byte(
    behaviour: str, kind: str, whole: bytes, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path, keep_alive_seconds=0.05) as server:
        url, token = fake.at(behaviour), await server.token()
        await server.model("quick", kind="openai", url=url)
        await server.model("held", kind="openai", url=url, review="always")

        async def read_stream(model: str, **headers: str) -> tuple[str, bytes]:
            body = {"model": model, "input": "hello", "stream": True}
            all_headers = {"authorization": f"Bearer {token}"} | headers
            async with server.http.post(server.url + "/v1/audio/speech", json=body, headers=all_headers) as response:
                first, rest = await response.content.readexactly(1), await response.read()
                # A slow machine may add comments to a stream of events, but never before its first byte.
                return response.content_type, first + rest.replace(b": still at work\n\n", b"")

        async def has_waited() -> bool | None:
            return asyncio.get_running_loop().time() > held_since + 0.2 or None

        # the same bytes come for a new call, for a repeated idempotency key, and for a held call
        for _ in range(2):
            assert await read_stream("quick", **{"idempotency-key": "k"}) == (kind, whole)
        call = asyncio.ensure_future(read_stream("held"))
        job = await until(lambda: held_job(server))
        held_since = asyncio.get_running_loop().time()
        await until(has_waited)
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert await call == (kind, whole)


async def test_a_held_or_rejected_response_cannot_be_fetched_from_its_upstream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, review="always")
        token = await server.token()
        body = {"model": "mine", "input": "hello"}
        call = asyncio.ensure_future(ask(server, token, "POST", "/v1/responses", json=body))
        job = await until(lambda: held_job(server))
        assert job.upstream_object_id == "resp_1Kept"
        for verdict in (None, "reject"):
            if verdict:
                await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="reject", reason="no"))
            assert (await ask(server, token, "GET", "/v1/responses/resp_1Kept"))[0] == 404
        assert (await call)[0] == 403


async def test_the_tokens_of_a_stored_response_count_once(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake)
        token = await server.token()
        response_id = await create_response(server, token)
        await ask(server, token, "POST", f"/v1/responses/{response_id}/cancel")
        first, second = await until(lambda: all_ended(server, 2))
        assert first.usage is not None
        assert (first.usage.total_tokens, second.prompt_tokens, second.completion_tokens) == (5, 0, 0)


async def test_requests_for_stored_objects_bypass_the_cache(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, cache="always")
        token = await server.token()
        response_id = await create_response(server, token)
        for _ in range(2):
            assert (await ask(server, token, "GET", f"/v1/responses/{response_id}"))[0] == 200
            assert (await ask(server, token, "DELETE", f"/v1/responses/{response_id}"))[0] == 200
        assert [request.method for request in fake.requests] == ["POST", "GET", "DELETE", "GET", "DELETE"]


async def test_an_answer_may_have_no_body(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("gone"), default=True)
        assert await ask(server, await server.token("admin"), "DELETE", "/v1/things/a1") == (200, None)


@pytest.mark.parametrize("kind", ["http", "echo"])
async def test_a_model_without_the_route_is_a_404(kind: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind=kind, url=fake.at("answer") if kind == "http" else None, default=True)
        status, response = await ask(server, await server.token("admin"), "GET", "/v1/things")
        assert status == 404
        assert "mine" in response["error"]["message"] or "/v1/things" in response["error"]["message"]
        assert not fake.requests


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/uploads"),
        ("GET", "/v1/a.b/c"),
        ("GET", "/v1/a/../../admin"),
        ("GET", "/v1/things?" + "x" * 5000),
        ("TRACE", "/v1/things"),
        ("SEARCH", "/v1/things"),
    ],
)
async def test_paths_and_methods_that_cannot_pass_through_are_refused(method: str, path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        status, response = await ask(server, await server.token("admin"), method, path)
        assert status in {400, 404}
        assert response["error"]["code"] in {"not_found", "bad_request"}
        assert not fake.requests


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/embeddings"), ("DELETE", "/v1/completions"), ("DELETE", "/v1/models/echo")]
)
async def test_a_known_path_refuses_other_methods(method: str, path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        status, response = await ask(server, await server.token("admin"), method, path)
        assert (status, response["error"]["code"]) == (405, "method_not_allowed")
        assert not fake.requests


ADMIN_ROUTES = [
    ("POST", "/v1/organization/invites"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/realtime/client_secrets"),
    ("POST", "/v1/realtime/sessions"),
    ("POST", "/v1/chatkit/sessions"),
    ("POST", "/v1/Organization/invites"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("DELETE", "/v1/organization/users/user_123"),
    # each request of such a batch names a model of its own
    ("POST", "/v1/messages/batches?model=mine"),
    ("POST", "/v1/messages/Batches"),
    ("GET", "/v1/messages/batches/msgbatch_01AbC/results?model=mine"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
async def test_routes_that_administer_an_upstream_are_for_admins(method: str, path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("mirror"), default=True)
        user, reviewer, admin = [await server.token(role) for role in ("user", "reviewer", "admin")]
        job = {"path": f"{method} {path}".removeprefix("POST "), "body": {}}
        for token in (user, reviewer):
            assert (await ask(server, token, method, path, json={}))[0] in {403, 404}
            assert (await ask(server, token, "POST", "/api/jobs", json=job))[0] in {403, 404}
        assert not fake.requests
        assert (await ask(server, admin, method, path, json={}))[0] == 200


async def test_a_model_can_open_more_routes_to_users(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        admin, user = await server.token("admin"), await server.token()
        model = {"name": "mine", "kind": "openai", "url": fake.at("mirror"), "default": True, "routes": ["realtime"]}
        assert (await ask(server, admin, "POST", "/api/models", json=model))[0] == 201
        assert (await ask(server, user, "POST", "/v1/realtime/sessions", json={}))[0] == 200
        assert (await ask(server, user, "POST", "/v1/organization/invites", json={}))[0] == 403
        status, error = await ask(server, admin, "PATCH", "/api/models/mine", json={"routes": ["a/b"]})
        assert (status, "`routes`" in error["detail"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "GET /v1/uploads/upload_1", "DELETE /v1/models/echo"])
async def test_routes_of_signoff_itself_pass_through_no_other_door(path: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await add_model(server, fake, default=True)
        body = {"path": path, "body": {"model": "mine"}}
        assert (await ask(server, await server.token("admin"), "POST", "/api/jobs", json=body))[0] == 400
        assert not await list_jobs(server)
        assert not fake.requests


async def test_a_head_request_for_models_has_no_body(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        assert await ask(server, await server.token(), "HEAD", "/v1/models") == (200, None)
        assert await ask(server, await server.token(), "HEAD", "/v1/models/echo/") == (200, None)


async def test_a_chat_needs_no_lookup_of_objects(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:

        async def unexpected_lookup(*_: object) -> dict[str, Job]:
            raise AssertionError

        server.services.store.objects.creators = unexpected_lookup  # type: ignore[method-assign]
        answer = await ai.chat.completions.create(**chat('{"x": "resp_1234"}'))
        assert "resp_1234" in (answer.choices[0].message.content or "")
        with pytest.raises(openai.InternalServerError):
            await ai.with_options(max_retries=0).responses.create(
                model="echo", input="a", previous_response_id="resp_1"
            )


async def all_ended(server: Live, count: int) -> list[Job] | None:
    jobs = await list_jobs(server)
    return jobs if len(jobs) == count and all(job.is_terminal for job in jobs) else None
