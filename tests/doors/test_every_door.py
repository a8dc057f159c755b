"""Rules that hold at every door. To test a new door, add it to DOORS."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.doors.openapi.errors import FORMATS
from signoff.doors.openapi.operations import OPERATIONS
from signoff.doors.openapi.plain import PLAIN
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio

Door = Callable[[Live, str, bytes], Awaitable[tuple[int, Any]]]
VARIES = {
    "id",
    "door",
    "lane",
    "seq",
    "due_at",
    "created_at",
    "updated_at",
    "max_attempts",
    "token_id",
    "cache",
    "cache_key",
    "queued_us",
    "ttft_us",
    "generation_us",
}


async def openai(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    return await server.ask("POST", "/v1/chat/completions", token, data=io.BytesIO(body))


async def openai_below_openai(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    return await server.ask("POST", "/openai/v1/chat/completions/", token, data=io.BytesIO(body))


async def jobs(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    return await server.ask("POST", "/enqueue", token, data=io.BytesIO(body))


async def native(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    try:
        target = json.loads(body).get("model")
    except (ValueError, RecursionError):
        target = None
    job_body = b'{"body": ' + body + b', "target": ' + json.dumps(target).encode() + b"}"
    return await server.ask("POST", "/api/jobs", token, data=io.BytesIO(job_body))


async def chat_completion(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    try:
        request = json.loads(body)
        meta = {"model": request["model"], "temperature": request.get("temperature", 0.2), "tokens_limit": 100}
        body = json.dumps({"meta": meta, "messages": request["messages"]}).encode()
    except (ValueError, RecursionError, KeyError):
        pass
    return await server.ask("POST", "/chat_completion", token, data=io.BytesIO(body))


async def predict(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    try:
        target = json.loads(body)["model"]
    except (ValueError, RecursionError, KeyError):
        target = "echo"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    url = f"{server.url}/post/predict?id={target}"
    async with server.http.post(url, headers=headers, data=io.BytesIO(body)) as response:
        data = await response.json()
        # The body of an error has only its text; the code is in a header.
        return response.status, data if response.status == 200 else data | {"code": response.headers["x-signoff-code"]}


async def cached(server: Live, token: str, body: bytes) -> tuple[int, Any]:
    return await server.ask("POST", "/api/openai/v1/chat/completions/", token, data=io.BytesIO(body))


DOORS: dict[str, Door] = {
    "openai": openai,
    "openai below /openai": openai_below_openai,
    "jobs": jobs,
    "native": native,
    "chat_completion": chat_completion,
    "predict": predict,
    "cached": cached,
}


NUL_BYTE_ROUTES = (
    "GET /job?id=ZERO",
    "GET /api/jobs/ZERO",
    "GET /api/jobs/ZERO/events",
    "GET /api/jobs?after=ZERO",
    "GET /api/usage?model=ZERO",
    "GET /check_status?job_id=ZERO",
    "DELETE /api/models/ZERO",
    "PUT /api/limits/each?model=ZERO",
    "DELETE /api/limits/each?model=ZERO",
    "DELETE /api/cache?model=ZERO",
    "DELETE /api/cache?key=ZERO",
    "GET /api/cache?model=ZERO",
    "POST /api/deliveries/ZERO/resend",
)


@pytest.mark.parametrize("door", DOORS)
async def test_one_ask_makes_the_same_job_at_every_door(door: str, tmp_path: Path) -> None:
    # given a model with a policy of its own, which overrides that of the door, and a job of the first door
    async with live(tmp_path) as server:
        await server.model("same", review="never")
        token, body = (
            await server.token(),
            json.dumps(chat("What is 2 + 2?", "same", temperature=0.5, max_tokens=100)).encode(),
        )
        await DOORS["openai"](server, token, body)
        # when the same request comes through this door
        status, _ = await DOORS[door](server, token, body)
        assert status in {200, 202}
        # then the jobs are equal, except for the fields in VARIES
        first, second = [record(job) for job in await ended_jobs(server, 2)]
        assert first == second
        assert first["response"]["choices"]


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_refuses_an_invalid_token(door: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        body = json.dumps(chat("hello")).encode()
        for token in (None, "nonsense", "sg_" + "x" * 38):
            status, response = await DOORS[door](server, token, body)  # type: ignore[arg-type]
            assert status == 401
            assert "oken" in json.dumps(response)


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_names_an_unknown_model_in_its_error(door: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await DOORS[door](server, await server.token(), json.dumps(chat("hello", "nobody")).encode())
        assert status == 404
        assert "model_not_found" in json.dumps(response)
        assert "nobody" in json.dumps(response)


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_refuses_a_model_name_with_a_zero_byte(door: str, postgres_url: str, tmp_path: Path) -> None:
    async with live(tmp_path, database_url=postgres_url) as server:
        await server.model("wild*")
        token = await server.token()
        for name in ("echo/a\0b", "wild\0"):
            status, response = await DOORS[door](server, token, json.dumps(chat("hello", name)).encode())
            assert status in {400, 404}, response
        assert await server.services.store.jobs.count(JobFilter(), at_most=10_000) == 0


async def test_a_zero_byte_in_a_lookup_is_a_client_error(postgres_url: str, tmp_path: Path) -> None:
    async with live(tmp_path, database_url=postgres_url) as server:
        admin = await server.token("admin")
        for route in NUL_BYTE_ROUTES:
            method, path = route.split()
            status, response = await server.ask(method, path.replace("ZERO", "a%00b"), admin, json={"parallel": 1})
            assert 400 <= status < 500, (route, response)
        for reference in ({"previous_response_id": "a\0b"}, {"conversation": "a\0b"}):
            body = {"model": "echo", "input": "hello"} | reference
            assert (await server.ask("POST", "/v1/responses", admin, json=body))[0] == 400
        # and the cache does not count as unreachable
        assert (await server.ask("GET", "/api/cache", admin))[0] == 200


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("body", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a": "\xed\xa0\x80"}'])
async def test_every_door_refuses_broken_json(door: str, body: bytes, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await DOORS[door](server, await server.token(), body)
        assert status == 400
        assert {"message", "detail", "content", "error"} & response.keys()


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_refuses_a_body_that_is_too_large(door: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        body = json.dumps(chat("x" * 30_000_000)).encode()
        status, response = await DOORS[door](server, await server.token(), body)
        assert status == 413
        assert "body_too_large" in json.dumps(response)


async def test_every_response_carries_a_request_id(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for path in ("/v1/models", "/jobs", "/api/jobs", "/health/live", "/post/predict", "/api/cache", "/nowhere"):
            async with server.http.get(server.url + path) as response:
                assert response.headers["x-request-id"]
        async with server.http.get(server.url + "/nowhere", headers={"x-request-id": "mine"}) as response:
            assert response.headers["x-request-id"] == "mine"


# Every route that reads a JSON body.
JSON_ROUTES = (
    "POST /v1/chat/completions",
    "POST /openai/v1/embeddings",
    "POST /v1/things",
    "POST /api/openai/v1/chat/completions",
    "POST /api/cache/v1/chat/completions",
    "POST /enqueue",
    "POST /reviewJob",
    "POST /post/predict?id=echo",
    "POST /generate",
    "POST /chat_completion",
    "POST /api/jobs",
    "POST /api/jobs/JOB/rerun",
    "POST /api/keys",
    "PUT /api/limits/all",
    "POST /api/models",
    "PATCH /api/models/echo",
    "POST /api/models/echo",
    "POST /api/pipeline/call",
    "POST /api/prompts",
    "POST /api/pipelines",
    "PUT /api/prompts/greet",
    "PATCH /api/prompts/greet",
    "PUT /api/prompts/greet/labels/test",
    "POST /api/session",
    "POST /api/tokens",
    "PATCH /api/users/1",
    "POST /api/streams",
    "PATCH /api/streams/batch",
    "PUT /api/prices",
)
# Routes that take any JSON value, and routes that take callers without a token.
FREE_FORM = {"POST /enqueue", "POST /post/predict?id=echo", "POST /api/models/echo"}
WITHOUT_TOKEN = {"POST /api/session"}
UNKNOWN_MODEL = (
    ("POST", "/v1/chat/completions", chat("hello", "nobody")),
    ("GET", "/v1/models/nobody", None),
    ("POST", "/api/openai/v1/chat/completions", chat("hello", "nobody")),
    ("POST", "/api/cache/v1/chat/completions", chat("hello", "nobody")),
    ("POST", "/enqueue", {"model": "nobody", "input": "hello"}),
    ("POST", "/post/predict?id=nobody", {}),
    ("GET", "/get/getlogs?id=nobody", None),
    ("POST", "/generate", {"content": "hello", "meta": {"model": "nobody"}}),
    ("POST", "/chat_completion", {"messages": [{}], "meta": {"model": "nobody"}}),
    ("POST", "/api/jobs", {"target": "nobody", "body": {}}),
    ("GET", "/api/models/nobody", None),
    ("PATCH", "/api/models/nobody", {}),
    ("POST", "/api/models/nobody?operation=stop", None),
    ("DELETE", "/api/models/nobody", None),
)
UNKNOWN_JOB = (
    ("GET", "/job?id=nobody", None),
    ("POST", "/reviewJob", {"id": "nobody", "status": "success"}),
    ("GET", "/check_status?job_id=nobody", None),
    ("GET", "/api/jobs/nobody", None),
    ("DELETE", "/api/jobs/nobody", None),
    ("GET", "/api/jobs/nobody/events", None),
    ("GET", "/api/jobs/nobody/run", None),
    ("GET", "/api/jobs/nobody/deliveries", None),
    ("POST", "/api/jobs/nobody/retry", None),
    ("POST", "/api/jobs/nobody/rerun", {"node": "0"}),
)
WRONG_METHOD = (
    "PUT /v1/embeddings",
    "DELETE /openai/v1/models/echo",
    "PUT /api/openai/v1/chat/completions",
    "PUT /api/cache",
    "PUT /enqueue",
    "PUT /job",
    "PUT /post/predict?id=echo",
    "PUT /generate",
    "PUT /check_status",
    "PATCH /api/jobs",
    "PUT /api/models",
    "PUT /api/session",
    "PUT /api/sessions",
    "PUT /api/tokens",
    "PUT /api/users",
)
UNKNOWN_PATH = (
    "GET /nowhere",
    "GET /api/nowhere",
    "GET /v1/a.b",
    "POST /api/openai/v1/nowhere",
    "POST /api/cache/v1/nowhere",
    "POST /post/nowhere?id=echo",
    "GET /job/nowhere",
    "GET /static/nowhere",
)


# Requests that lack a parameter, and its name.
WITHOUT_PARAMETER = (
    ("GET /job", None, "id"),
    ("GET /check_status", None, "job_id"),
    ("POST /check_status", None, "job_id"),
    ("POST /generate", {}, "content"),
    ("POST /chat_completion", {"job_id": "1"}, "messages"),
    ("POST /reviewJob", {}, "id"),
    ("POST /post/addmodel?id=new", None, "type"),
    ("POST /post/addmodel?id=new&type=httpmodel", None, "dest"),
    ("POST /v1/chat/completions", {"model": "echo"}, "messages"),
    ("POST /v1/messages", {"model": "echo"}, "messages"),
    ("POST /v1/edits", {"model": "echo"}, "instruction"),
    ("POST /v1/batches", {}, "input_file_id"),
    ("POST /v1/messages/batches", {"requests": [{"custom_id": "a"}]}, "requests[0].params"),
    ("POST /api/jobs", {}, "body"),
    ("POST /api/models", {"kind": "echo"}, "name"),
    ("POST /api/models", {"name": "new"}, "kind"),
    ("PATCH /api/models/new", {"endpoints": [{"url": "http://127.0.0.1"}, {}]}, "endpoints[1].url"),
    ("POST /api/prompts", {"body": "x"}, "name"),
    ("GET /api/pipeline/args", None, "pipeline_name"),
    ("POST /api/pipeline/call", {}, "pipeline_name"),
    ("POST /api/streams", {"name": "new", "url": "amqp://h"}, "requests"),
    ("POST /api/users", {}, "email"),
    ("PUT /api/policies/new", {}, "target"),
    ("DELETE /api/prices?model=echo", None, "valid_from"),
)


async def fault(server: Live, token: str | None, route: str, **more: Any) -> tuple[int, str]:
    """Return the status and the code of an error, in the format of any door."""
    method, path = route.split()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with server.http.request(method, server.url + path, headers=headers, **more) as response:
        body = await response.json(content_type=None)
        error = body.get("error")
        return response.status, response.headers.get("x-signoff-code") or body.get("code") or error["code"]


async def test_a_body_that_is_not_json_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for route in JSON_ROUTES:
            for body in (b"{", b'{"a": 1', b"\xff", b"[" * 4000):
                assert await fault(server, admin, route, data=body) == (400, "invalid_json"), (route, body)


async def test_a_body_of_the_wrong_form_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for route in sorted({*JSON_ROUTES} - FREE_FORM):
            assert await fault(server, admin, route, data=b"[]") == (400, "bad_request"), route


@pytest.mark.parametrize(("route", "body", "name"), WITHOUT_PARAMETER, ids=str)
async def test_a_missing_parameter_has_one_code_and_is_named(
    route: str, body: dict[str, Any] | None, name: str, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        admin, more = await server.token("admin"), {} if body is None else {"json": body}
        assert await fault(server, admin, route, **more) == (400, "missing_required_parameter")
        _, response = await server.ask(*route.split(), admin, **more)
        assert f"Missing required parameter: {name!r}." in json.dumps(response)


async def test_a_body_that_is_too_large_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path, max_body_bytes=1000) as server:
        admin = await server.token("admin")
        for route in JSON_ROUTES:
            assert await fault(server, admin, route, data=b" " * 1001) == (413, "body_too_large"), route


async def test_a_missing_token_has_one_code_and_that_of_openai_at_its_routes(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for route in sorted({*JSON_ROUTES} - WITHOUT_TOKEN):
            for token in (None, "nonsense"):
                code = "invalid_api_key" if "/v1/" in route and "/api/" not in route else "unauthorized"
                assert await fault(server, token, route, data=b"{}") == (401, code), route


async def test_a_wrong_method_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for route in WRONG_METHOD:
            assert await fault(server, admin, route) == (405, "method_not_allowed"), route


async def test_an_unknown_path_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for route in UNKNOWN_PATH:
            assert await fault(server, admin, route, data=b"{}") == (404, "not_found"), route


async def test_an_unknown_model_or_job_has_one_code(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for faults, code in ((UNKNOWN_MODEL, "model_not_found"), (UNKNOWN_JOB, "job_not_found")):
            for method, path, body in faults:
                more = {} if body is None else {"json": body}
                assert await fault(server, admin, f"{method} {path}", **more) == (404, code), path


async def ended_jobs(server: Live, count: int) -> list[Job]:
    """Wait until there are `count` jobs and all have ended; return them, oldest first."""

    async def all_ended() -> list[Job] | None:
        jobs = await server.services.store.jobs.list(JobFilter(limit=count + 1))
        return jobs if len(jobs) == count and all(job.is_terminal for job in jobs) else None

    return await until(all_ended)


def record(job: Job) -> dict[str, Any]:
    """Return the fields of the job that must be equal at every door.

    The id in the response is left out, because the echo derives it from the bytes of the body.
    """
    fields = {name: getattr(job, name) for name in Job.__struct_fields__ if name not in VARIES}
    answer = {name: value for name, value in json.loads(job.response or b"{}").items() if name != "id"}
    return fields | {"body": json.loads(job.body), "response": answer}


@pytest.mark.parametrize("door", DOORS)
async def test_an_internal_error_has_the_format_of_its_door(door: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()

        async def broken(*_: object) -> Any:
            raise RuntimeError("boom")

        server.services.caches.models.find = broken  # type: ignore[method-assign]
        status, response = await DOORS[door](server, token, json.dumps(chat("hello")).encode())
        assert status == 500
        assert "internal_error" in json.dumps(response)
        assert "boom" not in json.dumps(response)


async def test_a_client_that_disconnects_within_its_body_causes_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        host, port = server.url.removeprefix("http://").split(":")
        for path in ("/v1/chat/completions", "/enqueue", "/api/jobs", "/post/predict?id=echo"):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
            writer.write(head.encode())
            await writer.drain()
            writer.close()
        assert (await server.ask("GET", "/v1/models", token))[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/models/a%00b", "error"),
        ("/v1/responses/a?after=%00", "error"),
        ("/api/cache?model=%00", "detail"),
        ("/api/openai/%00", "detail"),
        ("/get/predict?id=%00", "content"),
        ("/check_status?job_id=%00", "detail"),
        ("/api/jobs/%00", "title"),
        ("/api/usage?model=%00", "title"),
        ("/api/audit?subject=%00", "title"),
        ("/api/prompts/a%00", "title"),
        ("/job?id=%00", "message"),
    ],
)
async def test_a_zero_byte_in_a_url_is_refused(tmp_path: Path, postgres_url: str, path: str, dialect: str) -> None:
    async with live(tmp_path, database_url=postgres_url) as server:
        status, response = await server.ask("GET", path, await server.token("admin"))
        assert (status, dialect in response) == (400, True), response


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/jobs?limit=-1&token=x", "`limit` (query) is not valid: Expected `int` >= 0."),
        (
            "/api/jobs?limit=0&total=x",
            "Expected `int` >= 1. `total` (query) is not valid: ",
        ),
        ("/api/users/x", ""),
        ("/v1/uploads", "send the whole file to POST /v1/files."),
        ("/signin/unknown", "This sign-in link was used already, or is too old."),
    ],
    ids=str,
)
async def test_an_error_names_the_parameter_and_the_fault_alone(path: str, text: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        method = "POST" if path == "/v1/uploads" else "GET"
        status, response = await server.ask(method, path, await server.token("admin"))
        assert 400 <= status < 500
        assert text in json.dumps(response)
        assert "token=x" not in json.dumps(response)


async def test_every_operation_of_the_document_has_an_error_in_the_format_of_its_api(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        _, document = await server.ask("GET", "/schema/openapi.json")
        operations = [(path, each) for path, item in document["paths"].items() for each in item.values()]
        assert len(operations) > 170
        for path, operation in operations:
            responses = operation["responses"]
            [(media_type, described)] = responses["default"]["content"].items()
            # the state of the server has one form, whether it is ready or not
            statuses = [each for each in responses if each >= "400" and (path, each) != ("/health/ready", "503")]
            errors = [responses[each]["content"] for each in statuses]
            assert errors == [{media_type: described}] * len(errors), path
            schema = document["components"]["schemas"][described["schema"]["$ref"].rpartition("/")[2]]
            async with server.http.get(server.url + re.sub(r"{[^}]*}", "7", path)) as response:
                if response.status == 401:
                    assert response.content_type == media_type
                    assert {*schema["required"]} <= {*await response.json()}


async def test_every_operation_parameter_and_member_of_the_document_is_described(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        _, document = await server.ask("GET", "/schema/openapi.json")
    operations = {
        f"{method.upper()} {path}": each for path, item in document["paths"].items() for method, each in item.items()
    }
    assert OPERATIONS.keys() | PLAIN.keys() == operations.keys()
    assert {tag for each in operations.values() for tag in each["tags"]} == {tag["name"] for tag in document["tags"]}
    assert [route for route, each in operations.items() if not each["summary"]] == []
    parameters = [(route, parameter) for route, each in operations.items() for parameter in each["parameters"]]
    assert [(route, each["name"]) for route, each in parameters if not each.get("description")] == []
    bodiless = {route for route, each in operations.items() if "requestBody" not in each}
    assert {route.partition(" ")[0] for route in bodiless} <= {"GET", "DELETE", "POST"}
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if name not in FORMATS}
    members = [
        (name, member, each)
        for name, schema in schemas.items()
        for member, each in schema.get("properties", {}).items()
    ]
    assert len(members) > 500
    assert [(name, member) for name, member, each in members if not each.get("description")] == []


async def test_the_document_has_the_media_type_of_an_export_and_the_status_of_an_empty_queue(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        _, document = await server.ask("GET", "/schema/openapi.json")
        export = document["paths"]["/api/reviews/feedback"]["get"]["responses"]["200"]
        assert list(export["content"]) == ["application/x-ndjson"]
        next_item = document["paths"]["/api/reviews/next"]["post"]["responses"]
        assert {"200", "204", "default"} <= set(next_item)
        assert "content" not in next_item["204"]
