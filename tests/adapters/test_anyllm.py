"""Hosted providers through the any-llm library, against local servers with the providers' protocols."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import FakeServer, RecordedRequest, Reply, chunked, json_reply, sse_event, wait_for_wake
from fakes.resolver import FakeResolver
from signoff.core.model import Model, model_fault
from signoff.engine import ModelRequest
from signoff.engines import anyllm
from signoff.engines.anyllm import AnyLLMEngine
from signoff.errors import ModelAnswered, ModelFailed
from support.live_server import Live, chat, live, words
from support.sinks import Answering, StepwiseAnswer, body_of

pytestmark = pytest.mark.anyio

USAGE = {"input_tokens": 7, "output_tokens": 3}
MESSAGE_EVENTS = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": USAGE,
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
    {"type": "message_stop"},
]


class Anthropic(FakeServer):
    """A server with Anthropic's Messages API.

    The model `slow` pauses in the middle of its stream until the model `busy` receives a request.
    """

    @property
    def keys(self) -> list[str]:
        """Return the key of every request."""
        return [request.headers["x-api-key"] for request in self.requests]

    async def reply(self, request: RecordedRequest) -> Reply:
        body = request.json()
        if body["model"] == "busy":
            self.wake.set()
            error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down."}}
            return json_reply(error, status=429, headers={"retry-after": "7"})
        if not body.get("stream"):
            message = MESSAGE_EVENTS[0]["message"] | {
                "content": [{"type": "text", "text": "Hello"}],
                "stop_reason": "end_turn",
            }
            return json_reply(message)
        events = [sse_event(event, name=event["type"]) for event in MESSAGE_EVENTS]
        if body["model"] == "slow":
            return chunked(*events[:3], wait_for_wake, *events[3:])
        return chunked(*events[:4], end="close") if body["model"] == "cut" else chunked(*events)


async def register(server: Live, name: str, upstream: str, url: str, **more: Any) -> None:
    model = {"name": name, "kind": "anyllm", "upstream_model": upstream, "url": url, "key": "sk-provider"} | more
    assert (await server.ask("POST", "/api/models", await server.token("admin"), json=model))[0] == 201


async def events(server: Live, token: str, body: dict[str, Any]) -> list[Any]:
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
        text = await response.text()
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def deltas(lines: list[Any]) -> str:
    choices = [choice for event in lines[:-1] for choice in json.loads(event).get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_requests_and_answers_are_translated_for_a_provider_with_another_protocol(tmp_path: Path) -> None:
    async with live(tmp_path) as server, Anthropic() as upstream:
        token = await server.token()
        await register(server, "claude", "anthropic/claude-x", upstream.url)
        status, payload = await server.ask(
            "POST", "/v1/chat/completions", token, json=chat("hi", "claude", max_tokens=9)
        )
        assert (status, words(payload)) == (200, "Hello")
        assert (payload["object"], payload["choices"][0]["finish_reason"]) == ("chat.completion", "stop")
        assert (payload["usage"]["prompt_tokens"], payload["usage"]["completion_tokens"]) == (7, 3)
        body = upstream.requests[-1].json()
        assert (upstream.keys[-1], body["model"], body["max_tokens"]) == ("sk-provider", "claude-x", 9)
        # a stream is translated too, to its end
        lines = await events(server, token, chat("hi", "claude", stream=True))
        assert (deltas(lines), lines[-1]) == ("Hello", "[DONE]")
        # other doors can call the model too, in other formats
        message = chat("hi", "claude", max_tokens=9)
        status, payload = await server.ask("POST", "/v1/messages", token, json=message)
        assert (status, payload["type"], payload["content"][0]["text"]) == (200, "message", "Hello")
        status, payload = await server.ask("POST", "/v1/responses", token, json={"model": "claude", "input": "hi"})
        assert (status, payload["object"], payload["output"][0]["content"][0]["text"]) == (200, "response", "Hello")
        status, payload = await server.ask("POST", "/post/predict?id=claude", token, data=b'"hi"')
        assert (status, words(payload)) == (200, "Hello")


async def test_a_providers_errors_keep_their_status(tmp_path: Path) -> None:
    async with live(tmp_path, now_attempts=1) as server, Anthropic() as upstream:
        token = await server.token()
        await register(server, "busy", "anthropic/busy", upstream.url)
        status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "busy"))
        assert (status, "Slow down." in payload["error"]["message"]) == (429, True)
        assert len(upstream.requests) == 1
        # a broken stream does not end like a complete one
        await register(server, "cut", "anthropic/cut", upstream.url)
        lines = await events(server, token, chat("hi", "cut", stream=True))
        assert "[DONE]" not in lines
        assert "error" in json.loads(lines[-1])
        # an address without a server is unreachable, and the error does not show the address
        await register(server, "lost", "anthropic/x", "http://127.0.0.1:9")
        status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "lost"))
        assert (status, payload["error"]["code"]) == (502, "model_unreachable")
        assert "127.0.0.1" not in payload["error"]["message"]


async def test_a_provider_with_openais_protocol_works_too(tmp_path: Path) -> None:
    async with live(tmp_path / "far") as far, live(tmp_path / "near") as near:
        token = await near.token()
        for name, echo in (("chat", "echo"), ("hangs", "echo/hang"), ("down", "echo/status=503")):
            more = {"key": await far.token(), "attempts": 1, "timeouts": {"first_byte_seconds": 3}}
            await register(near, name, f"openai/{echo}", far.url + "/v1", **more)
        body = chat("over there", "chat", temperature=0.5)
        status, payload = await near.ask("POST", "/v1/chat/completions", token, json=body)
        assert (status, words(payload)) == (200, "over there")
        lines = await events(near, token, body | {"stream": True, "stream_options": {"include_usage": True}})
        assert (deltas(lines), lines[-1]) == ("over there", "[DONE]")
        for name, expected in (("hangs", 504), ("down", 503)):
            assert (await near.ask("POST", "/v1/chat/completions", token, json=chat("x", name)))[0] == expected
        # parameters that the library accepts but a caller must not set, and one that it would drop
        for parameter in ({"extra_headers": {"x": "y"}}, {"api_base": "http://10.0.0.1"}, {"store": True}):
            status, payload = await near.ask("POST", "/v1/chat/completions", token, json=chat("x", "chat", **parameter))
            assert (status, next(iter(parameter)) in payload["error"]["message"]) == (400, True)
        assert (await near.ask("POST", "/v1/completions", token, json={"model": "chat", "prompt": "x"}))[0] == 404


async def test_a_callers_own_key_goes_to_the_provider(tmp_path: Path) -> None:
    async with live(tmp_path) as server, Anthropic() as upstream:
        await register(server, "claude", "anthropic/claude-x", upstream.url)
        ann = await server.token("user", "ann@x.y")
        _, key = await server.ask("POST", "/api/keys", ann, json={"name": "mine", "key": "sk-ann"})
        from signoff.work.admin.people import create_token, create_user

        token = await create_token(
            server.services, await create_user(server.services, "ann@x.y", "user"), key_id=key["id"]
        )
        for caller, expected in ((token, "sk-ann"), (ann, "sk-provider")):
            assert (await server.ask("POST", "/v1/chat/completions", caller, json=chat("hi", "claude")))[0] == 200
            assert upstream.keys[-1] == expected


def answering(engine: AnyLLMEngine, *, key: str = "k", stream: bool = False, **more: Any) -> Answering:
    model = Model(name="m", kind="anyllm", **({"upstream_model": "anthropic/x"} | more))
    body = json.dumps(chat("hi", "m")).encode()
    request = ModelRequest(path="/v1/chat/completions", body=body, target="m", key=key, stream=stream)
    return lambda sink: engine.answer(model, request, sink)


async def call_model(engine: AnyLLMEngine, **more: Any) -> bytes:
    return await body_of(answering(engine, **more))


async def test_concurrent_callers_with_one_key_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    created, create = list[Any](), anyllm._client
    monkeypatch.setattr(anyllm, "_client", lambda *arguments: created.append(arguments) or create(*arguments))
    engine = AnyLLMEngine()
    async with Anthropic() as upstream:
        await asyncio.gather(*(call_model(engine, key=key, url=upstream.url) for key in "abab"))
        assert sorted(key for _, key, _ in created) == ["a", "b"]
        assert sorted(upstream.keys) == ["a", "a", "b", "b"]
        await engine.close()


async def test_clients_beyond_the_maximum_do_not_end_a_running_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyllm, "MAX_CLIENTS", 1)
    engine = AnyLLMEngine()
    async with Anthropic() as upstream, asyncio.timeout(60):
        # given a caller whose answer has begun
        slow = StepwiseAnswer(answering(engine, stream=True, upstream_model="anthropic/slow", url=upstream.url))
        first = await slow.next()
        # when others call with keys of their own
        for key in "abc":
            await call_model(engine, key=key, url=upstream.url)
        with pytest.raises(ModelAnswered):
            await call_model(engine, key="d", upstream_model="anthropic/busy", url=upstream.url)
        # then that answer still completes
        events = [first or b"", *await slow.rest()]
        lines = [event.decode().removeprefix("data: ").strip() for event in events]
        assert (deltas(lines), lines[-1]) == ("Hello", "[DONE]")
        await engine.close()


async def test_a_missing_extra_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "any_llm", None)
    with pytest.raises(ModelFailed, match=r"\.\[anyllm\]"):
        await call_model(AnyLLMEngine())


async def test_an_unknown_provider_and_a_blocked_address_are_errors() -> None:
    engine = AnyLLMEngine()
    with pytest.raises(ModelFailed, match="nobody"):
        await call_model(engine, upstream_model="nobody/x")
    with pytest.raises(ModelFailed, match="in a range that is closed to models"):
        await call_model(AnyLLMEngine(FakeResolver(["169.254.169.254"])), url="http://model.example")
    await engine.close()
    assert model_fault(Model(name="m", kind="anyllm")) is not None
    assert model_fault(Model(name="mistral/*", kind="anyllm")) is None
