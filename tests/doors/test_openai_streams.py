"""Streams through the OpenAI door, compared byte by byte with what the upstream sent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import openai
import pytest

from fakes.behaviours import COMMENTED_EVENTS, CRLF_EVENTS, EVENTS, RESPONSE_EVENTS
from fakes.upstream import fake_upstream
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import Model, Timeouts
from signoff.engine import ModelRequest
from signoff.engines.echo import EchoEngine
from support.live_server import Live, chat, live, until
from support.sinks import events_of

pytestmark = pytest.mark.anyio
COMMENT = b": still at work\n\n"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
WHOLE = b"".join(EVENTS)


async def read_stream(server: Live, token: str, model: str, path: str = CHAT, text: str = "hello") -> tuple[int, bytes]:
    """Return the status and all bytes of a stream."""
    async with open_stream(server, token, model, path, text) as response:
        return response.status, await response.content.read()


@asynccontextmanager
async def open_stream(
    server: Live, token: str, model: str, path: str = CHAT, text: str = "hello"
) -> AsyncIterator[object]:
    headers = {"authorization": f"Bearer {token}"}
    required = {RESPONSES: {"input": text}, COMPLETIONS: {"prompt": text}}
    body = chat(text, model, stream=True) | required.get(path, {})
    async with server.http.post(server.url + path, json=body, headers=headers) as response:
        yield response


@pytest.mark.parametrize(
    ("behaviour", "path", "expected"),
    [
        ("stream", CHAT, WHOLE),
        ("stream", COMPLETIONS, WHOLE),
        ("stream", "/v1/audio/whatever/comes", WHOLE),
        ("stream-of-crlf", CHAT, b"".join(CRLF_EVENTS)),
        ("stream-of-bytes", CHAT, b"".join(CRLF_EVENTS)),
        ("stream-at-once", CHAT, WHOLE),
        ("stream-as-text", CHAT, WHOLE),
        ("stream-with-comments", CHAT, b"".join(COMMENTED_EVENTS)),
        ("stream-of-a-response", RESPONSES, b"".join(RESPONSE_EVENTS)),
    ],
)
async def test_a_stream_passes_byte_for_byte(behaviour: str, path: str, expected: bytes, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at(behaviour))
        assert await read_stream(server, await server.token(), "mine", path) == (200, expected)
        body = json.loads(fake.requests[0].body)
        assert "stream_options" not in body


@pytest.mark.parametrize(
    "behaviour", ["cut-stream", "cut-event", "end-stream-early", "reset-stream", "hang-mid-stream"]
)
async def test_a_stream_that_is_cut_or_stalls_ends_in_an_error_and_never_in_done(
    behaviour: str, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        timeouts = Timeouts(between_chunks_seconds=0.3) if behaviour == "hang-mid-stream" else Timeouts()
        await server.model("bad", kind="openai", url=fake.at(behaviour), timeouts=timeouts)
        status, content = await read_stream(server, await server.token(), "bad")
        *events, last = content.split(b"\n\n")[:-1]
        assert status == 200
        assert [event + b"\n\n" for event in events] == EVENTS[: len(events)]
        code = "model_timed_out" if behaviour == "hang-mid-stream" else "model_cut"
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
        assert b"[DONE]" not in content
        if behaviour != "end-stream-early":  # which leaves a connection that can be used again
            assert await fake.all_closed()
        job = await until(lambda: ended_job(server))
        assert job.error is not None
        assert (job.status, job.error.code) == ("fail", code)


@pytest.mark.parametrize(
    ("behaviour", "path", "code"),
    [("error-in-stream", CHAT, "507"), ("error-in-response", RESPONSES, "x")],
)
async def test_the_official_client_raises_an_error_within_a_stream(
    behaviour: str, path: str, code: str, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("bad", kind="openai", url=fake.at(behaviour))
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token()) as ai:
            with pytest.raises(openai.APIError, match="Out of memory") as caught:
                if path == CHAT:
                    async for _ in await ai.chat.completions.create(**chat("hello", "bad", stream=True)):
                        pass
                else:
                    async for _ in await ai.responses.create(model="bad", input="hello", stream=True):
                        pass
        assert caught.value.code == code


async def test_comments_keep_a_silent_stream_open_and_nothing_else_changes(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, keep_alive_seconds=0.05) as server:
        await server.model("slow", kind="openai", url=fake.at("stream-when-woken"))
        async with open_stream(server, await server.token(), "slow") as response:
            content = b""
            while content.count(COMMENT) < 3:
                content += await response.content.readany()
            fake.wake.set()
            content += await response.content.read()
        assert content.startswith(EVENTS[0] + COMMENT)
        assert content.replace(COMMENT, b"") == WHOLE


async def test_comments_come_before_the_first_event_too(tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server:
        status, content = await read_stream(server, await server.token(), "echo/delay=2", text="one two")
        assert status == 200
        assert content.startswith(COMMENT)
        assert content.endswith(b"data: [DONE]\n\n")
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token()) as ai:
            stream = await ai.chat.completions.create(**chat("one two", "echo/delay=0.3", stream=True))
            assert "".join([piece.choices[0].delta.content or "" async for piece in stream]) == "one two"


async def test_a_slow_client_slows_its_model_down(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, keep_alive_seconds=0.05) as server:
        await server.model("flood", kind="openai", url=fake.at("flood"))
        # given a client that reads nothing
        with slow_client(server, await server.token(), "flood"):
            # then the model, which never stops by itself, can soon send no more
            sent = await until(lambda: stable_number(lambda: fake.sent_bytes))
            assert 0 < sent < 24 * 2**20
        # and when the client disconnects, the call of the model is cancelled
        assert await fake.all_closed()


async def test_a_slow_client_reads_an_error_when_its_call_is_cancelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_after_seconds=0.05) as server:
        await server.model("flood", kind="openai", url=fake.at("flood"))
        token = await server.token()
        with slow_client(server, token, "flood") as client:
            await until(lambda: stable_number(lambda: fake.sent_bytes))
            job = await until(lambda: first_job(server))
            # when its owner cancels the call, and the process has dropped the lease
            assert (await server.ask("DELETE", f"/api/jobs/{job.id}", token))[0] == 200
            await until(lambda: has_no_lease(server))
            # then the client reads the events that were sent, and then an error
            received = b""
            async with asyncio.timeout(30):
                while data := await asyncio.get_running_loop().sock_recv(client, 2**20):
                    received = (received + data)[-1000:]
                    if received.endswith(b"0\r\n\r\n"):
                        break
            assert b'"code":"cancelled"' in received
        assert await fake.all_closed()
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


@contextmanager
def slow_client(server: Live, token: str, model: str) -> Iterator[socket.socket]:
    """Yield the socket of a client that has requested a stream, reads nothing, and has a small receive buffer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect((host, int(port)))
        body = json.dumps(chat("hello", model, stream=True)).encode()
        lines = [
            f"POST {CHAT} HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {token}",
            f"Content-Length: {len(body)}",
        ]
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        client.setblocking(False)
        yield client


async def test_a_stream_without_usage_is_counted(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("stream"))
        await read_stream(server, await server.token(), "mine", text="x" * 40)
        usage = (await until(lambda: ended_job(server))).usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 4, 14)


async def test_a_whole_answer_is_read_as_a_stream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("whole", kind="openai", url=fake.at("answer"))
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token()) as ai:
            stream = await ai.chat.completions.create(**chat("hello", "whole", stream=True))
            pieces = [piece async for piece in stream]
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "café café"
            assert pieces[-1].choices[0].finish_reason == "stop"


async def test_five_hundred_streams_at_once_are_right_byte_for_byte(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        name = "echo/tokens=50"
        async with asyncio.TaskGroup() as group:
            texts = [f"number {index} of all" for index in range(500)]
            tasks = [group.create_task(read_stream(server, token, name, text=text)) for text in texts]
        for text, task in zip(texts, tasks, strict=True):
            status, content = task.result()
            assert status == 200
            assert content == await echo_stream(text, name)
            assert content.count(b"\n\n") == 53


async def echo_stream(text: str, target: str) -> bytes:
    """Return the stream of the echo engine, called without a server."""
    body = json.dumps(chat(text, target, stream=True)).encode()
    request = ModelRequest(path=CHAT, body=body, target=target, stream=True)
    model = Model(name="echo", kind="echo")
    return b"".join(await events_of(lambda sink: EchoEngine(faults=True).answer(model, request, sink)))


async def ended_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if jobs and jobs[0].is_terminal else None


async def first_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if jobs else None


async def has_no_lease(server: Live) -> bool | None:
    return not server.services.runtime.leases._held or None


async def stable_number(number: object) -> int | None:
    """Return the value of `number` if it is not 0 and does not change for half a second, else None."""
    before = number()  # type: ignore[operator]
    await asyncio.sleep(0.5)
    return before if before and number() == before else None  # type: ignore[operator]
