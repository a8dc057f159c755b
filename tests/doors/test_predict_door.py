"""The door of the AI backend (`/post/predict`, `/post/addmodel`, `/get/getlogs`), as its document describes it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.programs import JSON_LINES_MODEL, PLAIN_LINES_MODEL
from fakes.upstream import fake_upstream
from signoff.core.model import Timeouts
from signoff.doors.predict import fields_of, model_of
from signoff.errors import BadRequest
from support.live_server import Live, chat, live, until, words

pytestmark = pytest.mark.anyio

DOCUMENT = 'id=myverygoodmodel?type=httpmodel?dest="127.0.0.1:8888"'


async def ask(server: Live, path: str, token: str | None, body: bytes | None = b"{}", **more: Any) -> tuple[int, Any]:
    """Send a request whose path is not encoded any further; return the status and the JSON."""
    headers = ({"authorization": f"Bearer {token}"} if token else {}) | more.get("headers", {})
    url = URL(server.url + path, encoded=True)
    async with server.http.request(more.get("method", "POST"), url, headers=headers, data=body) as response:
        return response.status, json.loads(await response.text())


@pytest.mark.parametrize(
    "query",
    [
        DOCUMENT,
        "id=myverygoodmodel&type=httpmodel&dest=127.0.0.1:8888",
        "id=myverygoodmodel&type=HttpModel&destination=http://127.0.0.1:8888",
        'ID="myverygoodmodel"?TYPE="HTTPMODEL"?DEST=\'127.0.0.1:8888\'',
        "dest=%22127.0.0.1%3A8888%22&type=httpmodel&id=myverygoodmodel",
        "id=myverygoodmodel%3Ftype%3Dhttpmodel%3Fdest%3D%22127.0.0.1%3A8888%22",
        "id=myverygoodmodel&x=1&type=httpmodel?y&dest=127.0.0.1:8888",
    ],
)
def test_every_spelling_of_a_query_is_understood(query: str) -> None:
    fields = fields_of(query)
    model = model_of(fields)
    assert (model.name, model.kind, model.url) == ("myverygoodmodel", "http", "http://127.0.0.1:8888")


def test_an_address_keeps_its_query_and_a_command_its_quotes() -> None:
    fields = fields_of("id=m&type=httpmodel&dest=https://h/p?a=1&b=2?id=3&type=x")
    assert model_of(fields).url == "https://h/p?a=1&b=2?id=3&type=x"
    fields = fields_of("id=m&type=SubprocessModel&dest=python3+%22my+model.py%22+--name+'a+b'")
    assert model_of(fields).command == ("python3", "my model.py", "--name", "a b")
    fields = fields_of('id=m&type=subprocessmodel&dest="python3%20model.py"')
    assert model_of(fields).command == ("python3", "model.py")


@pytest.mark.parametrize(
    "query", ["id=m", "id=m&type=magic&dest=x", "id=m&type=httpmodel", "id=m&type=subprocessmodel&dest='a"]
)
def test_an_invalid_model_is_refused(query: str) -> None:
    with pytest.raises(BadRequest):
        model_of(fields_of(query))


@given(st.text(max_size=60))
def test_any_query_can_be_parsed(query: str) -> None:
    assert fields_of(query).keys() <= {"id", "type", "dest"}


async def test_a_model_is_added_as_in_the_document_and_answers_at_once(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        admin, user = await server.token("admin"), await server.token()
        assert await ask(server, "/post/predict?id=myverygoodmodel", user) == (
            404,
            {"content": "id is not registered: myverygoodmodel"},
        )
        # given the query of the document, with the address of the fake
        query = DOCUMENT.replace("127.0.0.1:8888", fake.at("mirror").removeprefix("http://"))
        assert (await ask(server, f"/post/addmodel?{query}", admin))[0] == 200
        # then any JSON value passes through unchanged, with both methods
        for body in (b'{"a": [1, null]}', b"null", b'"text"', b"[]"):
            for kind in ("get", "post", "POST"):
                for method in ("GET", "POST"):
                    path = f"/{kind}/predict?id=myverygoodmodel"
                    assert await ask(server, path, user, body, method=method) == (200, json.loads(body))
        assert await ask(server, '/get/PREDICT/?id="myverygoodmodel"', user, None) == (200, None)


@pytest.mark.parametrize("name", ["", "%20", "a%0Ab", "x" * 256])
async def test_an_invalid_id_is_refused(name: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await ask(server, f"/post/predict?id={name}", await server.token())
        assert (status, response["content"][:10]) == (400, "Not an id:")
        assert (await ask(server, "/post/predict", await server.token()))[1] == {"content": "Not an id: "}


async def test_a_models_failures_have_their_statuses(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        token = await server.token()
        quick = Timeouts(first_byte_seconds=0.3, between_chunks_seconds=0.3)
        for behaviour, status in (
            ("html", 502),
            ("not-json", 502),
            ("leave", 502),
            ("hang-before-headers", 504),
            ("hang-mid-body", 504),
            ("too-many", 429),
            ("broken", 500),
        ):
            url = fake.at(behaviour)
            timeouts = quick if status == 504 else Timeouts()
            await server.model(behaviour, kind="http", url=url, timeouts=timeouts, attempts=1)
            result = await ask(server, f"/post/predict?id={behaviour}", token)
            assert result[0] == status, behaviour
            assert list(result[1]) == ["content"]


async def test_a_payload_for_a_chat_model_is_a_chat(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for payload in (b'"hello"', b'{"input": "hello"}', json.dumps(chat("hello", stream=True)).encode()):
            status, response = await ask(server, "/post/predict?id=echo", token, payload)
            assert (status, words(response)) == (200, "hello")


async def test_a_held_answer_waits_for_its_verdict(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("held", kind="subprocess", command=program(JSON_LINES_MODEL), review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        status, response = await ask(server, "/post/predict?id=held", token, headers={"prefer": "wait=0"})
        assert (status, set(response)) == (504, {"content", "job_id"})
        verdict = {"id": response["job_id"], "status": "success", "response": {"any": "JSON"}}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=verdict))[0] == 200
        job = await server.job_when(token, response["job_id"], lambda job: job["status"] == "success")
        assert job["response"] == {"any": "JSON"}


# Authorization


async def test_only_bearer_tokens_are_accepted(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="admin") as server:
        cookie = {"cookie": f"signoff_session={await server.token('admin')}"}
        for operation in ("cleanlogs", "addmodel"):
            path = f"/get/{operation}?id=m&type=httpmodel&dest=http://x"
            assert (await ask(server, path, None, headers=cookie, method="GET"))[0] == 401
        assert (await ask(server, "/post/predict?id=echo", None, b'"hi"'))[0] == 200
    async with live(tmp_path) as server:
        cookie = {"cookie": f"signoff_session={await server.token('admin', 'b@example.com')}"}
        for operation in ("predict", "getlogs", "cleanlogs", "addmodel"):
            assert (await ask(server, f"/post/{operation}?id=echo", None, headers=cookie))[0] == 401


async def test_only_admins_add_models_and_clean_logs(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for role in ("user", "reviewer"):
            token = await server.token(role)  # type: ignore[arg-type]
            for operation in ("addmodel", "cleanlogs"):
                path = f"/post/{operation}?id=echo&type=httpmodel&dest=http://x"
                assert (await ask(server, path, token))[0] == 403
        assert [model.name for model in await server.services.store.catalog.models()] == []


async def test_a_command_is_accepted_only_on_loopback_or_if_allowed(tmp_path: Path) -> None:
    path = "/post/addmodel?id=m&type=subprocessmodel&dest=cat"
    for number, (settings, status) in enumerate(
        [({}, 200), ({"host": "0.0.0.0"}, 403), ({"host": "0.0.0.0", "allow_remote_commands": True}, 200)]
    ):
        async with live(tmp_path / str(number), **settings) as server:
            assert (await ask(server, path, await server.token("admin")))[0] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"forwarded": "for=203.0.113.9"},
        {"via": "1.1 proxy"},
        {"x-forwarded-for": "203.0.113.9"},
        {"X-Forwarded-Host": "signoff.example"},
        {"x-forwarded-proto": "https"},
        {"x-original-forwarded-for": "203.0.113.9"},
        {"x-real-ip": "127.0.0.1"},
        {"cf-connecting-ip": "203.0.113.9"},
        {"true-client-ip": "203.0.113.9"},
        {"fly-client-ip": "203.0.113.9"},
        {"x-cluster-client-ip": "203.0.113.9"},
        {"host": "signoff.example"},
        {"host": "10.0.0.1"},
        {"host": "localhost.evil.example"},
        {"host": ""},
    ],
    ids="-".join,
)
async def test_a_request_through_a_proxy_on_this_machine_sets_no_command(
    headers: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        model = {"name": "n", "kind": "subprocess", "command": "cat"}
        path = "/post/addmodel?id=m&type=subprocessmodel&dest=cat"
        assert (await ask(server, path, token, headers=headers))[0] == 403
        assert (await server.ask("POST", "/api/models", token, json=model, headers=headers))[0] == 403
        await server.model("old", kind="subprocess", command=("true",))
        for change, status in (({"command": "cat"}, 403), ({"review": "never"}, 200)):
            path = "/api/models/old"
            assert (await server.ask("PATCH", path, token, json=change, headers=headers))[0] == status
        for host in ("localhost", "LOCALHOST:80", "127.0.0.7", "[::1]:8000"):
            assert (await server.ask("POST", "/api/models", token, json=model, headers={"host": host}))[0] in {201, 409}


@pytest.mark.parametrize(
    "dest",
    [
        "169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.1.1]",
        "2852039166",
        "ftp://x",
        "http://",
        "http://u:p@h",
    ],
)
async def test_an_invalid_or_link_local_address_is_refused(dest: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        path = f"/post/addmodel?id=m&type=httpmodel&dest={dest}"
        assert (await ask(server, path, await server.token("admin")))[0] == 400


async def test_other_operations_and_methods_are_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        assert (await ask(server, "/post/forget?id=echo", token))[0] == 404
        assert (await ask(server, "/post/?id=echo", token))[0] == 404
        assert (await ask(server, "/post/predict?id=echo", token, method="PUT"))[0] == 405


# Programs


def program(path: Path) -> tuple[str, ...]:
    return (sys.executable, "-S", str(path))


async def test_a_program_answers_each_caller_and_its_stderr_is_its_log(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, admin = await server.token(), await server.token("admin")
        await server.model("lines", kind="subprocess", command=program(JSON_LINES_MODEL))
        async with asyncio.TaskGroup() as group:
            path = "/post/predict?id=lines"
            calls = [group.create_task(ask(server, path, token, str(number).encode())) for number in range(50)]
        assert [call.result()[1]["asked"] for call in calls] == list(range(50))
        status, crash = await ask(server, path, token, b'{"exit": 3}')
        assert (status, "ended with status 3" in crash["content"]) == (502, True)
        assert (await ask(server, path, token, b"7"))[1]["asked"] == 7

        async def both_starts() -> list[Any] | None:
            _, entries = await ask(server, "/get/getlogs?id=lines", admin)
            return entries if len(entries) == 3 else None

        entries = await until(both_starts)
        assert [(entry["level"], entry["text"][:22]) for entry in entries] == [
            ("info", "ready"),
            ("error", "The model lines ended "),
            ("info", "ready"),
        ]
        # a log may quote the requests of all users, so only admins may read it
        assert (await ask(server, "/get/getlogs?id=lines", token))[0] == 403
        assert (await ask(server, "/get/cleanlogs?id=lines", admin))[0] == 200
        assert await ask(server, "/get/getlogs?id=lines", admin) == (200, [])


async def test_a_queued_job_is_retried_after_a_crash_up_to_its_attempts(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await server.model("fragile", kind="subprocess", command=program(JSON_LINES_MODEL), attempts=2)
        _, response = await server.ask("POST", "/enqueue", token, json={"model": "fragile", "exit": 3})
        job = await server.job_when(token, response["job_id"], lambda job: job["status"] == "fail")
        assert (job["attempt"], job["error"]["code"]) == (2, "model_crashed")


async def test_a_queued_job_passes_its_payload_to_a_program_unchanged(tmp_path: Path) -> None:
    async with live(tmp_path, enqueue_review="never") as server:
        token = await server.token()
        await server.model("lines", kind="subprocess", command=program(PLAIN_LINES_MODEL))
        _, response = await server.ask("POST", "/enqueue", token, json={"model": "lines", "input": "a"})
        job = await server.job_when(token, response["job_id"], lambda job: job["status"] == "success")
        assert job["response"]["of"] == {"model": "lines", "input": "a"}


async def test_responses_carry_the_remaining_requests_of_a_limit(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        assert (await server.ask("PUT", "/api/limits/each", admin, json={"requests_per_minute": 9}))[0] == 200
        headers = {"authorization": f"Bearer {admin}"}
        for left, path in ((8, "/post/predict?id=echo"), (7, "/api/openai/v1/chat/completions")):
            async with server.http.post(server.url + path, json=chat("hello"), headers=headers) as response:
                assert (response.status, response.headers["x-ratelimit-remaining-requests"]) == (200, str(left))


async def test_an_http_model_is_asked_for_its_own_log(tmp_path: Path) -> None:
    log = [{"line": 1}, "two"]

    async def answer(request: RecordedRequest) -> Reply:
        match request.method, request.path.partition("?")[0]:
            case "GET", "/own/getlogs":
                return json_reply(log)
            case "POST", "/own/cleanlogs":
                log.clear()
                return json_reply({"status": "done"})
            case _, path if path.startswith("/any"):  # a model that answers at every path has no such operation
                return json_reply({"answer": 4})
            case _:
                return json_reply({"error": "not found"}, status=404)

    async with live(tmp_path) as server, fake_upstream(answer) as upstream:
        admin = await server.token("admin")
        for name in ("own", "any", "none"):
            await server.model(name, kind="http", url=f"{upstream.url}/{name}?v=1")
        assert await ask(server, "/get/getlogs?id=own", admin) == (200, [{"line": 1}, "two"])
        assert await ask(server, "/get/getlogs?id=any", admin) == (200, [])
        assert await ask(server, "/get/getlogs?id=none", admin) == (200, [])
        for name in ("own", "any", "none"):
            assert (await ask(server, f"/post/cleanlogs?id={name}", admin))[0] == 200
        assert await ask(server, "/get/getlogs?id=own", admin) == (200, [])
        # its failures are in the log, before its own lines
        log.append({"line": 2})
        assert (await ask(server, "/post/predict?id=own", admin, b"1"))[0] == 404
        status, [failure, line] = await ask(server, "/get/getlogs?id=own", admin)
        assert (status, failure["level"], line) == (200, "error", {"line": 2})
