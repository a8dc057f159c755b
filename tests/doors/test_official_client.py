"""The unmodified official OpenAI client, sync and async, with all calls that an application makes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, client, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
SERVERS = ["vllm", "openai", "ollama"]
WEATHER: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


class City(pydantic.BaseModel):
    """A structured output that the tests ask the model for."""

    name: str
    degrees: float


async def test_the_sync_client_makes_every_kind_of_call(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("tools", kind="openai", url=fake.at("recorded/openai/chat-tools"))
        await server.model("streams", kind="openai", url=fake.at("recorded/openai/chat-tools-streamed"))
        await asyncio.to_thread(_call_everything, server.url, await server.token())


def _call_everything(url: str, token: str) -> None:
    with openai.OpenAI(base_url=url + "/v1", api_key=token, max_retries=0) as ai:
        assert ai.chat.completions.create(**chat("hello")).choices[0].message.content == "hello"
        pieces = list(ai.chat.completions.create(**chat("one two", stream=True)))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "one two"
        with ai.chat.completions.stream(**chat("one two")) as stream:
            assert stream.get_final_completion().choices[0].message.content == "one two"
        parsed = ai.chat.completions.parse(**chat('{"name": "Köln", "degrees": 21.5}'), response_format=City)
        assert parsed.choices[0].message.parsed == City(name="Köln", degrees=21.5)
        called = ai.chat.completions.create(**chat("weather?", "tools"), tools=WEATHER).choices[0].message.tool_calls
        assert called is not None
        assert json.loads(called[0].function.arguments) == {"city": "Köln"}
        with ai.chat.completions.stream(**chat("weather?", "streams"), tools=WEATHER) as calls:
            streamed = calls.get_final_completion().choices[0].message.tool_calls
        assert streamed is not None
        assert json.loads(streamed[0].function.arguments) == {"city": "Köln"}
        assert ai.completions.create(model="echo", prompt="hello").choices[0].text == "hello"
        assert len(ai.embeddings.create(model="echo", input=["one", "two"]).data) == 2
        assert ai.responses.create(model="echo", input="hello").output_text == "hello"
        with ai.responses.stream(model="echo", input="one two") as events:
            assert events.get_final_response().output_text == "one two"
        assert ai.responses.parse(model="echo", input='{"name": "Köln", "degrees": 1}', text_format=City).output_parsed
        assert ai.moderations.create(model="echo", input="hello").results[0].flagged is False
        assert "echo" in {model.id for model in ai.models.list()}
        assert ai.models.retrieve("echo").id == "echo"
        with pytest.raises(openai.NotFoundError):
            ai.chat.completions.create(**chat("hello", "nobody"))
        with pytest.raises(openai.APITimeoutError):
            ai.with_options(timeout=0.2).chat.completions.create(**chat("hello", "echo/hang"))


@pytest.mark.parametrize("name", SERVERS)
async def test_tools_are_called_in_a_stream_of_any_server(name: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("mine", kind="openai", url=fake.at(f"recorded/{name}/chat-tools-streamed"))
        async with ai.chat.completions.stream(**chat("weather?", "mine"), tools=WEATHER) as stream:
            choice = (await stream.get_final_completion()).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Köln"}
        assert json.loads(fake.requests[0].body)["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("stream", [False, True])
async def test_raw_headers_name_the_request_and_no_limits_if_there_are_none(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        raw = await ai.chat.completions.with_raw_response.create(
            **chat("hello", stream=stream), extra_headers={"x-request-id": "mine-1"}
        )
        assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
        assert raw.headers["x-signoff-model"] == "echo"
        assert raw.headers["x-signoff-job"]
        assert not [name for name in raw.headers if name.startswith("x-ratelimit")]
        plain = await ai.chat.completions.create(**chat("hello"))
        assert plain._request_id


async def test_unknown_fields_reach_the_model_and_come_back(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("mine", kind="openai", url=fake.at("recorded/openai/chat"))
        extra = {"guided_choice": ["a", "b"], "nested": {"deep": [1.5, None]}}
        answer = await ai.chat.completions.create(**chat("hello", "mine"), extra_body=extra, extra_query={"x": "1"})
        assert json.loads(fake.requests[0].body).items() >= extra.items()
        assert answer.system_fingerprint == "fp_38343a2f8f"
        thinking = fake.at("recorded/vllm/chat-reasoning-streamed")
        await server.model("thinks", kind="openai", url=thinking)
        pieces = [piece async for piece in await ai.chat.completions.create(**chat("hi", "thinks", stream=True))]
        assert pieces[0].choices[0].delta.model_extra is not None
        assert pieces[0].choices[0].delta.model_extra["reasoning"] == "Hmm"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_times_out_cancels_the_call_of_its_model(stream: bool, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, max_retries=0, timeout=2) as ai:
        await server.model("slow", kind="openai", url=fake.at("hang-before-headers"))
        with pytest.raises(openai.APITimeoutError):
            await ai.chat.completions.create(**chat("hello", "slow", stream=stream))
        assert await fake.all_closed()
        assert (await until(lambda: ended_job(server))).status == "fail"


async def test_a_stream_that_its_client_closes_cancels_the_call_of_its_model(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("slow", kind="openai", url=fake.at("hang-mid-stream"))
        stream = await ai.chat.completions.create(**chat("hello", "slow", stream=True))
        assert (await anext(aiter(stream))).choices[0].delta.content == "one"
        await stream.close()
        assert await fake.all_closed()
        job = await until(lambda: ended_job(server))
        assert job.error is not None
        assert job.error.code == "cancelled"


@pytest.mark.parametrize(("status", "calls"), [(400, 1), (404, 1), (422, 1), (429, 3), (503, 3)])
async def test_the_client_retries_only_retryable_statuses(status: int, calls: int, tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=2) as ai:
        await server.model("bad", kind="echo", attempts=1)
        with pytest.raises(openai.APIStatusError) as caught:
            await ai.chat.completions.create(**chat("hello", f"bad/status={status},retry_after=0"))
        assert caught.value.status_code == status

        async def all_written() -> bool | None:
            return len(await server.services.store.jobs.list(JobFilter())) == calls or None

        await until(all_written)


async def test_a_held_stream_is_read_with_the_edited_answer(tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server, client(server) as ai:
        await server.model("careful", review="always")

        async def read() -> tuple[str, str | None, int | None]:
            more: Any = {"stream_options": {"include_usage": True}}
            async with ai.chat.completions.stream(**chat("secret words", "careful"), **more) as stream:
                whole = await stream.get_final_completion()
            return (
                whole.choices[0].message.content,
                whole.choices[0].finish_reason,
                whole.usage and whole.usage.total_tokens,
            )

        call = asyncio.ensure_future(read())
        job = await until(lambda: held_job(server))
        edit = Edit(response='"signed off"')
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve", edit=edit))
        assert await call == ("signed off", "stop", 4)


async def ended_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if jobs and jobs[0].is_terminal else None


async def held_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    return jobs[0] if jobs else None
