"""Tool calls that a reviewer changes or refuses, as the official clients get them: whole and streamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, sse_event
from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, MESSAGES, RESPONSES
from signoff.core.dialects.convert import stream_events
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.errors import BadRequest
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
SCHEMA = {"type": "object", "properties": {"amount": {"type": "number", "maximum": 200}}, "required": ["amount"]}
QUESTION: list[Any] = [{"role": "user", "content": "Refund order 7."}]
TEXT = "I refund it."
CALLS = [("call_1", "refund", '{"amount": 150}'), ("call_2", "notify", "{}")]


class Outcome(NamedTuple):
    """The answer as a client has read it."""

    calls: list[tuple[str, str, Any]]
    text: str
    ending: str | None
    kinds: list[str]
    """Types of the events of a stream."""


def chat_pieces() -> list[Any]:
    """Return the chunks of a chat that calls two tools at the same time, as OpenAI cuts them."""
    deltas: list[Any] = [{"role": "assistant", "content": ""}, {"content": TEXT}]
    for index, (call_id, name, arguments) in enumerate(CALLS):
        head = {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [{"index": index} | head]})
        pieces = (arguments[:5], arguments[5:])
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    return [
        *chunks,
        head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        head | {"choices": [], "usage": usage},
    ]


def whole_chat() -> dict[str, Any]:
    called = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in CALLS
    ]
    message = {"role": "assistant", "content": TEXT, "tool_calls": called}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "up"}
    return head | {"choices": choices, "usage": usage}


def whole_response() -> dict[str, Any]:
    content: Any = [{"type": "output_text", "text": TEXT, "annotations": []}]
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    called = [
        {"id": f"fc_{call_id}", "type": "function_call", "status": "completed", "call_id": call_id, "name": name}
        | {"arguments": arguments}
        for call_id, name, arguments in CALLS
    ]
    usage = {"input_tokens": 9, "output_tokens": 6, "total_tokens": 15}
    head = {"id": "resp_1", "object": "response", "created_at": 7, "model": "up", "status": "completed"}
    return head | {"output": [said, *called], "usage": usage, "parallel_tool_calls": True, "tools": []}


def whole_message() -> dict[str, Any]:
    called = [
        {"type": "tool_use", "id": call_id, "name": name, "input": json.loads(arguments)}
        for call_id, name, arguments in CALLS
    ]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "stop_sequence": None}
    content = [{"type": "text", "text": TEXT}, *called]
    return head | {"content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 9, "output_tokens": 6}}


async def native_upstream(request: RecordedRequest) -> Reply:
    """Reply as a server that has all three APIs."""
    whole = {CHAT: whole_chat, RESPONSES: whole_response, MESSAGES: whole_message}[request.path]()
    if not request.json().get("stream"):
        return json_reply(whole)
    if request.path == CHAT:
        return chunked(*[sse_event(piece) for piece in chat_pieces()], b"data: [DONE]\n\n")
    return chunked(*stream_events(request.path, json.dumps(whole).encode(), with_usage=True))


async def chat_upstream(request: RecordedRequest) -> Reply:
    """Reply as a server that has chats alone."""
    if request.path != CHAT:
        return json_reply({"detail": "Not Found"}, status=404)
    return await native_upstream(request)


async def call_chat(server: Live, *, stream: bool) -> Outcome:
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("refund", "notify")
    ]
    tools[1]["function"]["parameters"] = {"type": "object"}
    request: dict[str, Any] = {"model": "held", "messages": QUESTION, "tools": tools}
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token(), max_retries=0) as ai:
        if not stream:
            return _read_chat(await ai.chat.completions.create(**request), [])
        options: Any = {"include_usage": True}
        async with ai.chat.completions.stream(**request, stream_options=options) as events:
            kinds = [event.type async for event in events if event.type != "chunk"]
            final = await events.get_final_completion()
        assert final.usage is not None
        assert final.usage.total_tokens == 15
        return _read_chat(final, kinds)


def _read_chat(completion: Any, kinds: list[str]) -> Outcome:
    choice = completion.choices[0]
    called: list[Any] = choice.message.tool_calls or []
    assert [getattr(call, "index", number) for number, call in enumerate(called)] == [*range(len(called))]
    assert {call.type for call in called} <= {"function"}
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in called]
    return Outcome(calls, choice.message.content or "", choice.finish_reason, kinds)


async def call_responses(server: Live, *, stream: bool) -> Outcome:
    tools: Any = [
        {"type": "function", "name": "refund", "parameters": SCHEMA, "strict": False},
        {"type": "function", "name": "notify", "parameters": {"type": "object"}, "strict": False},
    ]
    request: dict[str, Any] = {"model": "held", "input": QUESTION, "tools": tools}
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token(), max_retries=0) as ai:
        if not stream:
            return _read_response(await ai.responses.create(**request), [])
        async with ai.responses.stream(**request) as events:
            seen = [event async for event in events]
            final = await events.get_final_response()
        assert [event.sequence_number for event in seen] == [*range(len(seen))]
        return _read_response(final, [event.type for event in seen])


def _read_response(response: Any, kinds: list[str]) -> Outcome:
    items = [item for item in response.output if item.type == "function_call"]
    calls = [(item.call_id, item.name, json.loads(item.arguments)) for item in items]
    return Outcome(calls, response.output_text, response.status, kinds)


async def call_messages(server: Live, *, stream: bool) -> Outcome:
    tools: Any = [
        {"name": "refund", "input_schema": SCHEMA},
        {"name": "notify", "input_schema": {"type": "object"}},
    ]
    request: dict[str, Any] = {"model": "held", "max_tokens": 50, "messages": QUESTION, "tools": tools}
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token=await server.token(), max_retries=0) as ai:
        if not stream:
            return _read_message(await ai.messages.create(**request), [])
        async with ai.messages.stream(**request) as events:
            kinds = [event.type async for event in events]
            return _read_message(await events.get_final_message(), kinds)


def _read_message(message: Any, kinds: list[str]) -> Outcome:
    calls = [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"]
    text = "".join(block.text for block in message.content if block.type == "text")
    return Outcome(calls, text, message.stop_reason, kinds)


CLIENTS: dict[str, Any] = {CHAT: call_chat, RESPONSES: call_responses, MESSAGES: call_messages}
CALLED = {CHAT: "tool_calls", RESPONSES: "completed", MESSAGES: "tool_use"}
SAID = {CHAT: "stop", RESPONSES: "completed", MESSAGES: "end_turn"}
# Events by which each client knows a call of a tool.
CALL_EVENTS = {
    CHAT: ["tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"],
    RESPONSES: ["response.function_call_arguments.delta", "response.function_call_arguments.done"],
    MESSAGES: ["content_block_start", "input_json", "content_block_stop"],
}


@contextlib.asynccontextmanager
async def reviewed(tmp_path: Path, script: Any = native_upstream) -> AsyncIterator[Live]:
    """Yield a server whose model `held` calls two tools, and whose answers need a review."""
    async with fake_upstream(script) as fake, live(tmp_path, keep_alive_seconds=0.05) as server:
        await server.model("held", kind="openai", url=fake.url, review="always")
        yield server


async def held_job(server: Live) -> Job | None:
    held = await server.services.store.jobs.list(JobFilter(status="human"))
    return held[0] if held else None


async def review(server: Live, edit: Any, call: Awaitable[Outcome]) -> Outcome:
    """Approve the answer of `call` with an edit, and return what its client has got."""
    waiting = asyncio.ensure_future(call)
    try:
        job = await until(lambda: held_job(server))
        assert not waiting.done()
        request = VerdictRequest(verdict="approve", edit=Edit(response=json.dumps(edit)))
        await decide(server.services, REVIEWER, job.id, request)
        return await waiting
    finally:
        waiting.cancel()


@pytest.mark.parametrize("script", [native_upstream, chat_upstream], ids=["native", "translated"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", CLIENTS)
async def test_a_refund_that_a_reviewer_changed_reaches_the_agent(
    path: str, stream: bool, script: Any, tmp_path: Path
) -> None:
    async with reviewed(tmp_path, script) as server:
        edit = {"tool_calls": [{"id": "call_1", "arguments": {"amount": 100}}]}
        outcome = await review(server, edit, CLIENTS[path](server, stream=stream))
    assert outcome.calls == [("call_1", "refund", {"amount": 100}), ("call_2", "notify", {})]
    assert (outcome.text, outcome.ending) == (TEXT, CALLED[path])
    if stream:
        assert [kind for kind in CALL_EVENTS[path] if kind not in outcome.kinds] == []


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", CLIENTS)
async def test_an_agent_reads_why_a_call_was_refused(path: str, stream: bool, tmp_path: Path) -> None:
    async with reviewed(tmp_path) as server:
        refusal = {"id": "call_1", "refuse": "Above the limit of the shop."}
        one = await review(server, {"tool_calls": [refusal]}, CLIENTS[path](server, stream=stream))
        both = {"tool_calls": [refusal, {"id": "call_2", "refuse": "Not now."}]}
        none = await review(server, both, CLIENTS[path](server, stream=stream))
    assert (one.calls, one.ending) == ([("call_2", "notify", {})], CALLED[path])
    assert one.text.startswith(TEXT)
    assert one.text.endswith("Above the limit of the shop.")
    assert (none.calls, none.ending) == ([], SAID[path])
    assert none.text.endswith("Not now.")


@pytest.mark.parametrize("path", CLIENTS)
async def test_an_agent_goes_on_after_a_refusal(path: str, tmp_path: Path) -> None:
    async with reviewed(tmp_path) as server:
        edit = {"tool_calls": [{"id": "call_1", "refuse": "No receipt."}]}
        token = await server.token()
        body: dict[str, Any] = {"model": "held", "messages": QUESTION, "input": QUESTION, "max_tokens": 9}
        waiting = asyncio.ensure_future(server.ask("POST", path, token, json=body))
        job = await until(lambda: held_job(server))
        await decide(
            server.services,
            REVIEWER,
            job.id,
            VerdictRequest(verdict="approve", edit=Edit(response=json.dumps(edit))),
        )
        _, answer = await waiting
        # then its next request, with the answer and the result of the other call, is sound
        history: dict[str, list[Any]] = {
            CHAT: [*QUESTION, *(choice["message"] for choice in answer.get("choices", []))],
            RESPONSES: [*QUESTION, *answer.get("output", [])],
            MESSAGES: [*QUESTION, {"role": "assistant", "content": answer.get("content")}],
        }
        results: dict[str, Any] = {
            CHAT: {"role": "tool", "tool_call_id": "call_2", "content": "done"},
            RESPONSES: {"type": "function_call_output", "call_id": "call_2", "output": "done"},
            MESSAGES: {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "call_2", "content": "done"}],
            },
        }
        again = body | {"messages": [*history[path], results[path]], "input": [*history[path], results[path]]}
        next_call = asyncio.ensure_future(server.ask("POST", path, token, json=again))
        job = await until(lambda: held_job(server))
        assert b"No receipt." in job.body
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert (await next_call)[0] == 200


async def test_an_edit_that_the_tool_could_not_take_is_refused_on_every_way_to_the_desk(tmp_path: Path) -> None:
    async with reviewed(tmp_path) as server:
        waiting = asyncio.ensure_future(call_chat(server, stream=True))
        job = await until(lambda: held_job(server))
        _, item = await server.ask("GET", f"/api/reviews/{job.id}", await server.token("admin"))
        shown = [(call["id"], call["name"], json.loads(call["arguments"])) for call in item["tool_calls"]]
        assert shown == [(call_id, name, json.loads(arguments)) for call_id, name, arguments in CALLS]
        assert item["tool_calls"][0]["schema"] == SCHEMA
        faulty = {"tool_calls": [{"id": "call_1", "arguments": {"amount": 900}}]}
        edit = Edit(response=json.dumps(faulty))
        with pytest.raises(
            BadRequest, match=r"`tool_calls\[0\]\.arguments` at `\.amount`: 900 is greater than the maximum"
        ):
            await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve", edit=edit))
        token = await server.token("reviewer")
        body = {"id": job.id, "status": "success", "response": faulty}
        status, error = await server.ask("POST", "/reviewJob", token, json=body)
        assert (status, "`.amount`: 900" in json.dumps(error)) == (400, True)
        # a draft may be faulty, but an approval does not send it
        assert (await server.ask("POST", "/reviewJob", token, json=body | {"status": "human"}))[0] == 200
        sent = {"id": job.id, "status": "success"}
        assert (await server.ask("POST", "/reviewJob", token, json=sent))[0] == 400
        sound = {"tool_calls": [{"id": "call_1", "arguments": {"amount": 100}}]}
        assert (await server.ask("POST", "/reviewJob", token, json=sent | {"response": sound}))[0] == 200
        assert (await waiting).calls[0][2] == {"amount": 100}


async def test_an_edited_call_is_delivered_to_a_queued_job_too(tmp_path: Path) -> None:
    async with reviewed(tmp_path) as server:
        token = await server.token("reviewer")
        native = {"target": "held", "path": CHAT, "body": {"messages": QUESTION}}
        _, queued = await server.ask("POST", "/api/jobs", token, json=native)
        held = await server.job_when(token, queued["job_id"], lambda job: job["status"] == "human")
        edit = {"tool_calls": [{"id": "call_2", "refuse": "Quiet, please."}]}
        body = {"id": held["job_id"], "status": "success", "response": edit}
        assert (await server.ask("POST", "/reviewJob", token, json=body))[0] == 200
        job = await server.job_when(token, queued["job_id"], lambda job: job["status"] == "success")
        message = job["response"]["choices"][0]["message"]
        assert [call["id"] for call in message["tool_calls"]] == ["call_1"]
        assert "Quiet, please." in message["content"]
