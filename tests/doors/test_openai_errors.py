"""Errors in the official client: their class, code and headers, and which of them the client retries."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from fakes.behaviours import ANSWER, EVENTS
from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, whole
from fakes.upstream import fake_upstream
from signoff.core.envelope import answer_message
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import Model, Timeouts
from signoff.core.stream import IncomingMessage, Stream
from signoff.doors.topics import accept_message
from signoff.work.admin.registry import ModelKeys, register_model
from support.live_server import Live, chat, client, live, until

pytestmark = pytest.mark.anyio
CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}


async def failure(
    server: Live, model: str = "bad", *, stream: bool = False, max_retries: int = 0
) -> openai.APIStatusError:
    """Send a request with the official client, and return the error that it raises."""
    key = await server.token()
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=key, max_retries=max_retries) as ai:
        with pytest.raises(openai.APIStatusError) as caught:
            await ai.chat.completions.create(**chat("hello", model, stream=stream))
        return caught.value


@pytest.mark.parametrize("status", CLASSES)
async def test_every_status_has_its_class_and_the_headers_that_name_the_job(status: int, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for stream in (False, True):
            error = await failure(server, f"echo/status={status}", stream=stream)
            assert type(error) is CLASSES[status]
            assert error.request_id
            assert error.response.headers["x-signoff-model"] == "echo"
            job = await server.services.store.jobs.get(error.response.headers["x-signoff-job"])
            assert job is None or job.status == "fail"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("hang-before-headers", 504, "model_timed_out"),
        ("slow-headers", 504, "model_timed_out"),
        ("hang-after-headers", 504, "model_timed_out"),
        ("leave", 502, "model_unreachable"),
        ("html", 502, "model_garbled"),
        ("not-json", 502, "model_garbled"),
        ("not-http", 502, "model_garbled"),
        ("deep", 502, "model_garbled"),
        ("huge-body", 502, "model_garbled"),
        ("redirect", 502, "model_garbled"),
        ("too-many", 429, "rate_limited"),
        ("broken", 500, "model_error"),
        ("broken-in-html", 500, "model_error"),
        ("broken-by-number", 400, "400"),
    ],
)
async def test_every_fault_of_a_model_has_its_error_and_leaves_no_connection(
    behaviour: str, status: int, code: str, stream: bool, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        quick = Timeouts(first_byte_seconds=0.3, between_chunks_seconds=0.3)
        timeouts = quick if status == 504 else Timeouts()
        await server.model("bad", kind="openai", url=fake.at(behaviour), timeouts=timeouts, attempts=1)
        error = await failure(server, stream=stream)
        assert (type(error), error.status_code, error.code) == (CLASSES[status], status, code)
        assert isinstance(error.code, str)
        job = await until(lambda: ended_job(server))
        assert job.id == error.response.headers["x-signoff-job"]
        assert job.error is not None
        assert job.error.status == status


async def test_the_retry_after_of_a_model_is_passed_on(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for retry_after, expected in (("7", "7"), ("0.2", "1"), ("0", "0")):
            error = await failure(server, f"echo/status=429,retry_after={retry_after}")
            assert error.response.headers.get_list("retry-after") == [expected]


@pytest.mark.parametrize(("behaviour", "calls"), [("huge-body", 1), ("html", 3)])
async def test_the_client_retries_only_retryable_faults(behaviour: str, calls: int, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("bad", kind="openai", url=fake.at(behaviour), attempts=1)
        error = await failure(server, max_retries=2)
        assert error.status_code == 502
        assert ("x-should-retry" in error.response.headers) == (calls == 1)
        assert len(fake.requests) == calls


async def test_a_missing_parameter_is_named_in_the_dialect_of_each_door(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, text = await server.token(), "Missing required parameter: 'messages'."
        error = {"message": text, "type": "invalid_request_error", "param": "messages"}
        error |= {"code": "missing_required_parameter"}
        body = {"model": "echo", "mesages": [{"role": "user", "content": "typo"}]}
        for path in ("/v1", "/openai/v1"):
            response = await server.ask("POST", f"{path}/chat/completions", token, json=body)
            assert response == (400, {"error": error})
        response = await server.ask("POST", "/api/openai/v1/chat/completions", token, json=body)
        assert response == (400, {"detail": text, "code": "missing_required_parameter"})
        # on a topic
        stream = Stream(name="one", scheme="amqp", host="h", sealed=b"", requests="in", responses="out")
        message = {"path": "/v1/chat/completions", "metadata": 7, "body": body}
        await accept_message(server.services, stream, IncomingMessage(json.dumps(message).encode(), "1"))
        job = await until(lambda: ended_job(server))
        assert json.loads(answer_message(job)) == {"status_code": 400, "metadata": 7, "body": {"error": error}}
        # a queue takes any payload
        for path, queued in (("/enqueue", body), ("/api/jobs", {"body": body, "target": "echo"})):
            assert (await server.ask("POST", path, token, json=queued))[0] in {200, 202}


async def ended_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if jobs and jobs[0].is_terminal else None


SECRET = "sk-of-the-operator-123"


async def answer_with(request: RecordedRequest) -> Reply:
    """Answer as the path says: the status, and the name of the error's shape."""
    _, status, shape, *_ = request.path.split("/")
    body = SHAPES.get(shape, {"error": {"message": f"No: {SECRET}", "type": "t", "code": shape}})
    return json_reply(body, status=int(status), headers=HEADERS)


HEADERS = {
    "retry-after": "9",
    "retry-after-ms": "8500",
    "x-ratelimit-remaining-tokens": "7",
    "x-ratelimit-reset-tokens": "1m3s",
    "set-cookie": "a=b",
}
SHAPES: dict[str, object] = {
    "list": [{"error": {"code": 400, "message": "Wrong."}}],
    "fastapi": {"detail": [{"loc": ["body", "model"], "msg": "Wrong."}]},
    "object": {"error": {"message": {"detail": "Wrong."}}},
}


async def test_errors_of_models_are_readable_and_show_no_key(tmp_path: Path) -> None:
    async with fake_upstream(answer_with) as fake, live(tmp_path) as server:
        for shape in SHAPES:
            await server.model(shape, kind="openai", url=f"{fake.url}/400/{shape}")
            error = await failure(server, shape)
            assert str(error.body["message"]).endswith("Wrong.")  # pyright: ignore[reportIndexIssue]
        model = Model(name="denied", kind="openai", url=f"{fake.url}/401/invalid_api_key")
        await register_model(server.services, model, ModelKeys(SECRET))
        error = await failure(server, "denied")
        assert (error.status_code, error.code, error.type) == (401, "model_access_denied", "upstream_error")
        assert "www-authenticate" not in error.response.headers
        assert SECRET not in error.response.text
        await server.model("no-route", kind="openai", url=f"{fake.url}/404/none")
        error = await failure(server, "no-route")
        assert "The model no-route answered status 404 to /v1/chat/completions: No: ***" in error.message
        await server.model("no-model", kind="openai", url=f"{fake.url}/404/model_not_found")
        assert (await failure(server, "no-model")).code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_limits_of_a_model_are_passed_on(stream: bool, tmp_path: Path) -> None:
    async with fake_upstream(answer_with) as fake, live(tmp_path) as server:
        for status, code, calls in ((429, "slow", 1), (429, "insufficient_quota", 1), (503, "busy", 1), (501, "x", 1)):
            name = f"{status}-{code}"
            await server.model(name, kind="openai", url=f"{fake.url}/{status}/{code}", attempts=3)
            before = len(fake.requests)
            headers = (await failure(server, name, stream=stream)).response.headers
            assert len(fake.requests) - before == calls
            assert (headers["retry-after"], headers["retry-after-ms"]) == ("9", "8500")
            assert headers.get_list("x-ratelimit-remaining-tokens") == ["7"]
            assert headers["x-ratelimit-reset-tokens"] == "1m3s"
            assert "set-cookie" not in headers
            assert ("x-should-retry" in headers) == (code not in {"slow", "busy"})


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_the_limits_of_its_model(stream: bool, tmp_path: Path) -> None:
    async def answer(request: RecordedRequest) -> Reply:
        if stream:
            return chunked(*EVENTS, headers=HEADERS)
        return whole(ANSWER, headers=HEADERS)

    async with fake_upstream(answer) as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("mine", kind="openai", url=fake.url)
        raw = await ai.chat.completions.with_raw_response.create(**chat("hello", "mine", stream=stream))
        assert raw.headers["x-ratelimit-remaining-tokens"] == "7"
        assert raw.headers["x-ratelimit-reset-tokens"] == "1m3s"
        assert "set-cookie" not in raw.headers


async def test_a_token_that_is_not_valid_has_the_code_of_openai(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eA=="}, {"x-api-key": "wrong"}):
            status, payload = await server.ask("GET", "/v1/models", headers=headers)
            assert (status, payload["error"]["code"]) == (401, "invalid_api_key")
