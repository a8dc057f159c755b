"""Anthropic's official client at `/v1/messages`: natively, by translation, held, edited, cached, refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, sse_event
from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES
from signoff.core.dialects.answer import with_text
from signoff.core.dialects.convert import stream_events
from signoff.core.dialects.messages import PING
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job, Verdict
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, client, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
WEATHER: Any = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
NATIVE: dict[str, Any] = {
    "id": "msg_up",
    "type": "message",
    "role": "assistant",
    "model": "claude-up",
    "content": [{"type": "text", "text": "Bonjour"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 2},
}
WHOLE = json.dumps(NATIVE).encode()
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


def ask(model: str = "echo", text: str = "one two", **more: Any) -> dict[str, Any]:
    """Return the parameters of a request for a message."""
    return {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}]} | more


@contextlib.asynccontextmanager
async def claude(server: Live, **more: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Yield the official client, with a new token."""
    options = {"max_retries": 0} | more
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token=await server.token(), **options) as ai:
        yield ai


async def text_of_stream(ai: anthropic.AsyncAnthropic, **request: Any) -> tuple[str, anthropic.types.Message]:
    """Return the pieces of the text of a stream, joined, and the message that the client makes of its events."""
    async with ai.messages.stream(**request) as stream:
        pieces = [piece async for piece in stream.text_stream]
        return "".join(pieces), await stream.get_final_message()


async def anthropic_script(request: RecordedRequest) -> Reply:
    """Reply as Anthropic's API."""
    if request.path == COUNT_TOKENS:
        return json_reply({"input_tokens": 42})
    if request.path != MESSAGES:
        return json_reply({"error": "no such path"}, status=404)
    if request.json()["model"] == "gone":
        error = {"type": "error", "error": {"type": "not_found_error", "message": "model: gone"}, "request_id": "r"}
        return json_reply(error, status=404)
    if not request.json().get("stream"):
        return json_reply(NATIVE)
    return chunked(*stream_events(MESSAGES, WHOLE, with_usage=False))


async def chat_script(request: RecordedRequest) -> Reply:
    """Reply as a server that has chats alone, and calls the tools that it gets."""
    if request.path != CHAT:
        return json_reply({"detail": "Not Found"}, status=404)
    body = request.json()
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]} if "tools" in body else {"content": "Hello"}
    reason, usage = "tool_calls" if "tools" in body else "stop", {"prompt_tokens": 5, "completion_tokens": 2}
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return json_reply({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})
    delta = message | ({"tool_calls": [CALL | {"index": 0}]} if "tools" in body else {})
    pieces: list[Any] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}]
    pieces += [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}, {"choices": [], "usage": usage}]
    return chunked(*[sse_event(piece) for piece in pieces], b"data: [DONE]\n\n")


async def test_echo_prompts_and_pipelines_answer_as_messages(tmp_path: Path) -> None:
    async with live(tmp_path) as server, claude(server) as ai:
        message = await ai.messages.create(**ask())
        assert (message.content[0].text, message.stop_reason) == ("one two", "end_turn")
        assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 2)
        text, streamed = await text_of_stream(ai, **ask())
        assert (text, streamed.content[0].text, streamed.usage.input_tokens) == ("one two", "one two", 2)
        assert (await ai.messages.count_tokens(model="echo", messages=ask()["messages"])).input_tokens > 0
        for path, body in (
            ("/api/prompts", {"name": "greet", "body": "Hi {who}", "model": "echo"}),
            ("/api/pipelines", {"name": "polite", "body": "greet(text)"}),
        ):
            assert (await server.ask("POST", path, await server.token(), json=body))[0] == 201
        assert (await ai.messages.create(**ask("greet", "Ann"))).content[0].text == "Hi Ann"
        assert (await ai.messages.create(**ask("polite", "Ann"))).content[0].text == "Hi Ann"
        assert (await text_of_stream(ai, **ask("polite", "Ann")))[0] == "Hi Ann"


async def test_an_upstream_with_this_api_is_asked_natively_and_its_tokens_count(tmp_path: Path) -> None:
    async with fake_upstream(anthropic_script) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("claude", kind="openai", url=fake.url)
        assert (await ai.messages.create(**ask("claude"))).id == "msg_up"
        assert (await ai.beta.messages.create(**ask("claude"), betas=["x-2026-01-01"])).id == "msg_up"
        text, message = await text_of_stream(ai, **ask("claude"))
        assert (text, message.usage.input_tokens, message.usage.output_tokens) == ("Bonjour", 7, 3)
        assert (await ai.messages.count_tokens(model="claude", messages=[])).input_tokens == 42
        assert {request.path for request in fake.requests} == {MESSAGES, COUNT_TOKENS}
        for job in await ended_jobs(server, 4):
            assert job.completion_tokens == (0 if job.path == COUNT_TOKENS else 3)
            assert (job.prompt_tokens > 0) is (job.path == MESSAGES)


async def test_a_stream_without_its_beginning_gets_one(tmp_path: Path) -> None:
    async def headless(_: RecordedRequest) -> Reply:
        return chunked(PING, *list(stream_events(MESSAGES, WHOLE, with_usage=False))[1:])

    async with fake_upstream(headless) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("claude", kind="openai", url=fake.url)
        text, message = await text_of_stream(ai, **ask("claude"))
        assert (text, message.stop_reason, message.usage.output_tokens) == ("Bonjour", "end_turn", 3)
        (job,) = await ended_jobs(server, 1)
        assert json.loads(job.response or b"")["id"] == message.id


async def test_an_upstream_with_chats_alone_is_asked_for_one_and_its_own_endpoint_is_tried_once(tmp_path: Path) -> None:
    async with fake_upstream(chat_script) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("plain", kind="openai", url=fake.url)
        assert (await ai.messages.create(**ask("plain"))).content[0].text == "Hello"
        text, message = await text_of_stream(ai, **ask("plain", tools=WEATHER))
        assert (text, message.stop_reason) == ("", "tool_use")
        assert [(block.name, block.input) for block in message.content] == [("weather", {"city": "Köln"})]
        called = await ai.messages.create(**ask("plain", tools=WEATHER))
        assert called.content[0].input == {"city": "Köln"}
        results = [{"type": "tool_result", "tool_use_id": "call_1", "content": "rain"}]
        history: list[Any] = [*ask()["messages"], {"role": "assistant", "content": called.content}]
        await ai.messages.create(**ask("plain", messages=[*history, {"role": "user", "content": results}]))
        assert [message["role"] for message in fake.requests[-1].json()["messages"]] == ["user", "assistant", "tool"]
        assert [request.path for request in fake.requests] == [MESSAGES, *[CHAT] * 4]
        assert (await ai.messages.count_tokens(model="plain", messages=ask()["messages"])).input_tokens > 0


async def test_responses_of_an_upstream_with_chats_alone_are_translated_and_cannot_be_continued(tmp_path: Path) -> None:
    async with fake_upstream(chat_script) as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("plain", kind="openai", url=fake.url)
        whole = await ai.responses.create(model="plain", input="Hi")
        assert (whole.output_text, whole.usage.total_tokens) == ("Hello", 7)
        async with ai.responses.stream(model="plain", input="Hi") as stream:
            assert (await stream.get_final_response()).output_text == "Hello"
        assert [request.path for request in fake.requests] == [RESPONSES, CHAT, CHAT]
        for previous_id in (whole.id, "resp_unknown"):
            with pytest.raises(openai.BadRequestError, match="previous_response_id"):
                await ai.responses.create(model="plain", input="More", previous_response_id=previous_id)


async def test_a_response_that_its_server_does_not_have_is_no_missing_endpoint(tmp_path: Path) -> None:
    async def without(request: RecordedRequest) -> Reply:
        return json_reply(
            {"error": {"message": f"No {request.json()['previous_response_id']}", "code": 404}}, status=404
        )

    async with fake_upstream(without) as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("mine", kind="openai", url=fake.url)
        with pytest.raises(openai.NotFoundError, match="No resp_1"):
            await ai.responses.create(model="mine", input="More", previous_response_id="resp_1")
        with pytest.raises(openai.BadRequestError, match="no upstream has stored"):
            await ai.responses.create(model="mine", input="More", previous_response_id="resp_chat_1")
        assert [request.path for request in fake.requests] == [RESPONSES]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("native", [False, True], ids=["translated", "native"])
@pytest.mark.parametrize("edit", [None, "Edited."], ids=["approved", "edited"])
async def test_a_held_message_keeps_its_form(*, streams: bool, native: bool, edit: str | None, tmp_path: Path) -> None:
    script = anthropic_script if native else chat_script
    async with (
        fake_upstream(script) as fake,
        live(tmp_path, keep_alive_seconds=0.05) as server,
        claude(server) as ai,
    ):
        await server.model("held", kind="openai", url=fake.url, review="always")
        request = ask("held")
        call = asyncio.ensure_future(text_of_stream(ai, **request) if streams else ai.messages.create(**request))
        job = await verdict(server, "approve", edit)
        answer: Any = await call
        text, message = answer if streams else (answer.content[0].text, answer)
        assert text == message.content[0].text == (edit or ("Bonjour" if native else "Hello"))
        held = json.loads(job.response or b"")
        assert (message.id, message.model, message.stop_reason) == (held["id"], held["model"], "end_turn")
        assert message.usage.output_tokens == held["usage"]["output_tokens"] > 0
        assert (await ai.messages.count_tokens(model="held", messages=request["messages"])).input_tokens > 0


async def test_a_rejected_message_is_refused_in_this_dialect(tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server, claude(server) as ai:
        await server.model("held", review="always")
        whole = asyncio.ensure_future(ai.messages.create(**ask("held")))
        await verdict(server, "reject")
        with pytest.raises(anthropic.PermissionDeniedError, match="rude"):
            await whole
        streamed = asyncio.ensure_future(text_of_stream(ai, **ask("held")))
        await verdict(server, "reject")
        with pytest.raises(anthropic.APIStatusError, match="rude"):
            await streamed


async def test_a_message_that_waits_for_a_person_too_long_gets_its_job(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.1) as server, claude(server, max_retries=2) as ai:
        await server.model("held", review="always")
        with pytest.raises(anthropic.APIStatusError) as raised:
            await ai.messages.create(**ask("held"))
        error, headers = raised.value, raised.value.response.headers
        assert (error.status_code, headers["x-should-retry"]) == (504, "false")
        job = await until(lambda: held_job(server))
        assert headers["location"] == f"/api/jobs/{job.id}"
        body: Any = error.body
        assert (body["type"], body["error"]["type"]) == ("error", "timeout_error")
        assert (body["error"]["code"], body["error"]["job_id"]) == ("review_pending", job.id)


@pytest.mark.parametrize(
    ("request_", "kind", "error_type"),
    [
        (ask("nobody"), anthropic.NotFoundError, "not_found_error"),
        (ask("echo/status=429"), anthropic.RateLimitError, "rate_limit_error"),
        (ask("echo/status=529"), anthropic.APIStatusError, "overloaded_error"),
        (ask("echo/status=500"), anthropic.InternalServerError, "api_error"),
        (ask("echo/status=403"), anthropic.PermissionDeniedError, "permission_error"),
        (ask(messages=[{"role": "tool", "content": "x"}]), anthropic.BadRequestError, "invalid_request_error"),
        (ask(tools=[{"type": "web_search_20250305", "name": "w"}]), anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "echo", "messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "echo", "max_tokens": 5}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
async def test_errors_have_the_class_that_the_client_knows(
    request_: dict[str, Any], kind: type[anthropic.APIStatusError], error_type: str, tmp_path: Path
) -> None:
    async with live(tmp_path, now_attempts=1) as server, claude(server) as ai:
        with pytest.raises(kind) as raised:
            await ai.post("/v1/messages", body=request_, cast_to=anthropic.types.Message)
        body: Any = raised.value.body
        assert body["error"]["type"] == error_type
        assert body["request_id"] == raised.value.response.headers["request-id"] == raised.value.request_id


async def test_errors_of_the_door_itself_are_in_this_dialect(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for method, path, status, kind in (
            ("POST", MESSAGES, 401, "authentication_error"),
            ("GET", "/openai/v1/messages", 401, "authentication_error"),
        ):
            answer = await server.ask(method, path, json={})
            assert (answer[0], answer[1]["type"], answer[1]["error"]["type"]) == (status, "error", kind)
        token = await server.token()
        for method, path in (("GET", MESSAGES), ("PUT", COUNT_TOKENS)):
            answer = await server.ask(method, path, token)
            assert (answer[0], answer[1]["error"]["type"]) == (405, "invalid_request_error")


async def test_an_error_of_this_api_is_passed_on_and_no_sign_of_a_missing_endpoint(tmp_path: Path) -> None:
    async with fake_upstream(anthropic_script) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("gone", kind="openai", url=fake.url)
        with pytest.raises(anthropic.NotFoundError, match="model: gone"):
            await ai.messages.create(**ask("gone"))
        assert [request.path for request in fake.requests] == [MESSAGES]


@pytest.mark.parametrize("cut", ["echo/cut", "echo/cut,chunk_delay=0.01"])
async def test_a_stream_that_is_cut_ends_in_an_error_and_never_in_its_last_event(cut: str, tmp_path: Path) -> None:
    async with live(tmp_path, now_attempts=1) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = ask(cut, "a b c d e f", stream=True)
        async with server.http.post(server.url + MESSAGES, json=body, headers=headers) as response:
            events = (await response.text()).strip().split("\n\n")
        assert events[0].startswith("event: message_start\n")
        assert events[-1].startswith("event: error\n")
        assert json.loads(events[-1].partition("data: ")[2])["error"]["type"] == "api_error"


async def test_a_cached_message_is_given_again_whole_and_as_a_stream(tmp_path: Path) -> None:
    async with fake_upstream(chat_script) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("plain", kind="openai", url=fake.url)
        first = await ai.messages.create(**ask("plain", temperature=0))
        count = len(fake.requests)
        raw = await ai.messages.with_raw_response.create(**ask("plain", temperature=0))
        assert raw.headers["x-signoff-cache"] == "hit"
        assert raw.parse() == first
        assert (await text_of_stream(ai, **ask("plain", temperature=0)))[0] == "Hello"
        assert len(fake.requests) == count


async def test_http_models_answer_as_messages_whatever_they_send(tmp_path: Path) -> None:
    async def any_json(request: RecordedRequest) -> Reply:
        return json_reply(NATIVE if "claude" in request.path else "Hello")

    async with fake_upstream(any_json) as fake, live(tmp_path) as server, claude(server) as ai:
        await server.model("texts", kind="http", url=f"{fake.url}/texts")
        await server.model("claude", kind="http", url=f"{fake.url}/claude")
        assert (await ai.messages.create(**ask("texts"))).content[0].text == "Hello"
        assert (await ai.messages.create(**ask("claude"))).id == "msg_up"
        assert (await text_of_stream(ai, **ask("texts")))[0] == "Hello"


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda event: event.replace(b"event: ", b"event:"),
        lambda event: event[event.index(b"data:") :],
        lambda event: event.replace(b"\n", b"\r\n"),
        lambda event: b"id: 1\n" + event,
    ],
)
async def test_http_models_stream_messages_however_they_write_events(
    rewrite: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    async def rewritten(_: RecordedRequest) -> Reply:
        return chunked(*map(rewrite, stream_events(MESSAGES, WHOLE, with_usage=False)))

    async with fake_upstream(rewritten) as fake, live(tmp_path) as server:
        await server.model("claude", kind="http", url=fake.url)
        headers = {"authorization": f"Bearer {await server.token()}"}
        async with server.http.post(
            server.url + MESSAGES, json=ask("claude", stream=True), headers=headers
        ) as response:
            events = [event async for event in response.content]
        assert b"".join(events) == b"".join(map(rewrite, stream_events(MESSAGES, WHOLE, with_usage=False)))


PROGRAM = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    roles = [message["role"] for message in request["body"]["messages"]]
    for piece in (request["operation"], " ", ",".join(roles)):
        print(json.dumps({"id": request["id"], "delta": piece}), flush=True)
    print(json.dumps({"id": request["id"], "body": None}), flush=True)
"""


async def test_programs_are_asked_for_a_chat_and_queued_jobs_have_messages(tmp_path: Path) -> None:
    async with live(tmp_path) as server, claude(server) as ai:
        await server.model("lines", kind="subprocess", command=(sys.executable, "-S", "-c", PROGRAM))
        request, expected = ask("lines", system="Be brief."), "chat/completions system,user"
        assert (await ai.messages.create(**request)).content[0].text == expected
        assert (await text_of_stream(ai, **request))[0] == expected
        token = await server.token()
        job = {"target": "lines", "path": MESSAGES, "body": request}
        _, accepted = await server.ask("POST", "/api/jobs", token, json=job)
        ended = await server.job_when(token, accepted["job_id"], lambda job: job["status"] != "bot")
        assert (ended["response"]["type"], ended["response"]["content"][0]["text"]) == ("message", expected)
        refused = await server.ask("POST", "/api/jobs", token, json=job | {"body": {"messages": []}})
        assert (refused[0], "max_tokens" in refused[1]["detail"]) == (400, True)


async def verdict(server: Live, kind: Verdict, text: str | None = None) -> Job:
    """Give a verdict on the job that is held, and return that job."""
    job = await until(lambda: held_job(server))
    edit = Edit(response=None if text is None else with_text(job.response or b"", text).decode())
    await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict=kind, reason="rude", edit=edit))
    return job


async def held_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    return jobs[0] if jobs else None


async def ended_jobs(server: Live, count: int) -> list[Job]:
    """Wait until there are `count` jobs and all have ended; return them."""

    async def all_ended() -> list[Job] | None:
        jobs = list(await server.services.store.jobs.list(JobFilter()))
        return jobs if len(jobs) == count and all(job.is_terminal for job in jobs) else None

    return await until(all_ended)
