"""Hosted providers through the any-llm library, against real servers that speak their dialects."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import FakeServer, RecordedRequest, Reply, chunked, json_reply, sse_event, wait_for_wake
from fakes.resolver import FakeResolver
from signoff.core.answer import Chunk
from signoff.core.model import Model, model_fault
from signoff.engine import ModelRequest
from signoff.engines import anyllm
from signoff.engines.anyllm import AnyLLMEngine
from signoff.errors import ModelAnswered, ModelFailed
from support.live_server import Live, chat, live, words

pytestmark = pytest.mark.anyio

USAGE = {"input_tokens": 7, "output_tokens": 3}
SPOKEN = [
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
    """A server that speaks as Anthropic's Messages API does.

    The model `slow` stops in the middle until `busy` is asked.
    """

    @property
    def keys(self) -> list[str]:
        """The key of every request."""
        return [request.headers["x-api-key"] for request in self.requests]

    async def reply(self, request: RecordedRequest) -> Reply:
        body = request.json()
        if body["model"] == "busy":
            self.wake.set()
            error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down."}}
            return json_reply(error, status=429, headers={"retry-after": "7"})
        if not body.get("stream"):
            message = SPOKEN[0]["message"] | {"content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn"}
            return json_reply(message)
        events = [sse_event(event, name=event["type"]) for event in SPOKEN]
        if body["model"] == "slow":
            return chunked(*events[:3], wait_for_wake, *events[3:])
        return chunked(*events[:4], end="close") if body["model"] == "cut" else chunked(*events)


async def registered(server: Live, name: str, upstream: str, url: str, **more: Any) -> None:
    new = {"name": name, "kind": "anyllm", "upstream_model": upstream, "url": url, "key": "sk-provider"} | more
    assert (await server.ask("POST", "/api/models", await server.token("admin"), json=new))[0] == 201


async def events(server: Live, token: str, body: dict[str, Any]) -> list[Any]:
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
        text = await response.text()
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def deltas(told: list[Any]) -> str:
    chosen = [choice for event in told[:-1] for choice in json.loads(event).get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in chosen)


async def test_a_provider_with_another_dialect_is_asked_in_it_and_answers_in_ours(tmp_path: Path) -> None:
    async with live(tmp_path) as server, Anthropic() as upstream:
        token = await server.token()
        await registered(server, "claude", "anthropic/claude-x", upstream.url)
        status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "claude", max_tokens=9))
        assert (status, words(told)) == (200, "Hello")
        assert (told["object"], told["choices"][0]["finish_reason"]) == ("chat.completion", "stop")
        assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (7, 3)
        body = upstream.requests[-1].json()
        assert (upstream.keys[-1], body["model"], body["max_tokens"]) == ("sk-provider", "claude-x", 9)
        # a stream too, to its end
        said = await events(server, token, chat("hi", "claude", stream=True))
        assert (deltas(said), said[-1]) == ("Hello", "[DONE]")
        # and any other door
        status, told = await server.ask("POST", "/post/predict?id=claude", token, data=b'"hi"')
        assert (status, words(told)) == (200, "Hello")


async def test_a_providers_errors_keep_their_status(tmp_path: Path) -> None:
    async with live(tmp_path, now_attempts=1) as server, Anthropic() as upstream:
        token = await server.token()
        await registered(server, "busy", "anthropic/busy", upstream.url)
        status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "busy"))
        assert (status, "Slow down." in told["error"]["message"]) == (429, True)
        assert len(upstream.requests) == 1
        # a stream that breaks does not end as if it were whole
        await registered(server, "cut", "anthropic/cut", upstream.url)
        said = await events(server, token, chat("hi", "cut", stream=True))
        assert "[DONE]" not in said
        assert "error" in json.loads(said[-1])
        # what is not there is unreachable, and its address is not told
        await registered(server, "lost", "anthropic/x", "http://127.0.0.1:9")
        status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "lost"))
        assert (status, told["error"]["code"]) == (502, "model_unreachable")
        assert "127.0.0.1" not in told["error"]["message"]


async def test_a_provider_that_speaks_as_openai_does_is_asked_as_well(tmp_path: Path) -> None:
    async with live(tmp_path / "far") as far, live(tmp_path / "near") as near:
        token = await near.token()
        for name, echo in (("chat", "echo"), ("hangs", "echo/hang"), ("down", "echo/status=503")):
            more = {"key": await far.token(), "attempts": 1, "timeouts": {"first_byte_seconds": 3}}
            await registered(near, name, f"openai/{echo}", far.url + "/v1", **more)
        body = chat("over there", "chat", temperature=0.5)
        status, told = await near.ask("POST", "/v1/chat/completions", token, json=body)
        assert (status, words(told)) == (200, "over there")
        said = await events(near, token, body | {"stream": True, "stream_options": {"include_usage": True}})
        assert (deltas(said), said[-1]) == ("over there", "[DONE]")
        for name, expected in (("hangs", 504), ("down", 503)):
            assert (await near.ask("POST", "/v1/chat/completions", token, json=chat("x", name)))[0] == expected
        # what the library would take and a caller may not say, and what it would leave out
        for strange in ({"extra_headers": {"x": "y"}}, {"api_base": "http://10.0.0.1"}, {"store": True}):
            status, told = await near.ask("POST", "/v1/chat/completions", token, json=chat("x", "chat", **strange))
            assert (status, next(iter(strange)) in told["error"]["message"]) == (400, True)
        assert (await near.ask("POST", "/v1/completions", token, json={"model": "chat", "prompt": "x"}))[0] == 404


async def test_a_caller_s_own_key_goes_to_the_provider(tmp_path: Path) -> None:
    async with live(tmp_path) as server, Anthropic() as upstream:
        await registered(server, "claude", "anthropic/claude-x", upstream.url)
        ann = await server.token("user", "ann@x.y")
        _, key = await server.ask("POST", "/api/keys", ann, json={"name": "mine", "key": "sk-ann"})
        from signoff.work.admin.people import create_token, create_user

        token = await create_token(
            server.services, await create_user(server.services, "ann@x.y", "user"), key_id=key["id"]
        )
        for caller, expected in ((token, "sk-ann"), (ann, "sk-provider")):
            assert (await server.ask("POST", "/v1/chat/completions", caller, json=chat("hi", "claude")))[0] == 200
            assert upstream.keys[-1] == expected


def answer(engine: AnyLLMEngine, *, key: str = "k", stream: bool = False, **more: Any) -> AsyncGenerator[Chunk, None]:
    model = Model(name="m", kind="anyllm", **({"upstream_model": "anthropic/x"} | more))
    body = json.dumps(chat("hi", "m")).encode()
    request = ModelRequest(path="/v1/chat/completions", body=body, target="m", key=key, stream=stream)
    return engine.answer(model, request)


async def said_by(engine: AnyLLMEngine, **more: Any) -> list[Chunk]:
    return [chunk async for chunk in answer(engine, **more)]


async def test_callers_who_come_at_once_with_one_key_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = list[Any](), anyllm._client
    monkeypatch.setattr(anyllm, "_client", lambda *told: made.append(told) or make(*told))
    engine = AnyLLMEngine()
    async with Anthropic() as upstream:
        await asyncio.gather(*(said_by(engine, key=key, url=upstream.url) for key in "abab"))
        assert sorted(key for _, key, _ in made) == ["a", "b"]
        assert sorted(upstream.keys) == ["a", "a", "b", "b"]
        await engine.close()


async def test_more_keys_than_there_is_room_for_cut_nobody_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyllm, "MAX_CLIENTS", 1)
    engine = AnyLLMEngine()
    async with Anthropic() as upstream, asyncio.timeout(60):
        # given somebody who is being answered
        slow = answer(engine, stream=True, upstream_model="anthropic/slow", url=upstream.url)
        said = [await anext(slow)]
        # when others come with keys of their own
        for key in "abc":
            await said_by(engine, key=key, url=upstream.url)
        with pytest.raises(ModelAnswered):
            await said_by(engine, key="d", upstream_model="anthropic/busy", url=upstream.url)
        # then that answer comes to its end
        said += [chunk async for chunk in slow]
        told = [chunk.raw.decode().removeprefix("data: ").strip() for chunk in said]
        assert (deltas(told), told[-1]) == ("Hello", "[DONE]")
        await engine.close()


async def test_without_the_extra_it_says_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "any_llm", None)
    with pytest.raises(ModelFailed, match=r"signoff\[anyllm\]"):
        await said_by(AnyLLMEngine())


async def test_a_provider_that_there_is_not_is_told_so() -> None:
    engine = AnyLLMEngine()
    with pytest.raises(ModelFailed, match="nobody"):
        await said_by(engine, upstream_model="nobody/x")
    with pytest.raises(ModelFailed, match="in a range that is closed to models"):
        await said_by(AnyLLMEngine(FakeResolver(["169.254.169.254"])), url="http://model.example")
    await engine.close()
    assert model_fault(Model(name="m", kind="anyllm")) is not None
    assert model_fault(Model(name="mistral/*", kind="anyllm")) is None
