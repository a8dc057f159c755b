"""Faults of an upstream at the OpenAI door.

Each has the right class and code in the official client, closes its connection to the upstream at once, and takes a
limited amount of memory.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from fakes.behaviours import EVENTS, bomb
from fakes.upstream import fake_upstream
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import Timeouts
from support import processes
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
LATE = Timeouts(first_byte_seconds=0.5)
STALLED = Timeouts(between_chunks_seconds=0.5)
# Faults that only a timeout ends. All others have the default timeouts, so that a slow machine does not reach them.
TIMEOUTS = {
    "hang-before-headers": LATE,
    "slow-headers": LATE,
    "slow-status": LATE,
    "hang-after-headers": msgspec.structs.replace(LATE, between_chunks_seconds=0.5),
    "hang-mid-body": STALLED,
    "hang-mid-stream": STALLED,
    "flood": Timeouts(total_seconds=1),
}
SERVER = openai.InternalServerError
# Faults before the first event, which have a status of their own for plain and for streamed calls.
BEFORE: dict[str, tuple[type[openai.APIStatusError], int, str]] = {
    "leave": (SERVER, 502, "model_unreachable"),
    "hang-before-headers": (SERVER, 504, "model_timed_out"),
    "slow-headers": (SERVER, 504, "model_timed_out"),
    "slow-status": (SERVER, 504, "model_timed_out"),
    "huge-headers": (SERVER, 502, "model_garbled"),
    "hang-after-headers": (SERVER, 504, "model_timed_out"),
    "hang-mid-body": (SERVER, 504, "model_timed_out"),
    "cut-body": (SERVER, 502, "model_cut"),
    "huge-body": (SERVER, 502, "model_garbled"),
    "gzip-bomb": (SERVER, 502, "model_garbled"),
    "not-chunks": (SERVER, 502, "model_garbled"),
    "not-http": (SERVER, 502, "model_garbled"),
    "html": (SERVER, 502, "model_garbled"),
    "speech": (SERVER, 502, "model_garbled"),
    "redirect": (SERVER, 502, "model_garbled"),
    "too-many": (openai.RateLimitError, 429, "rate_limited"),
    "broken": (SERVER, 500, "model_error"),
    "broken-by-number": (openai.BadRequestError, 400, "400"),
}
# Faults after the first event, which are the last event of the stream.
AFTER = {
    "cut-stream": "model_cut",
    "cut-event": "model_cut",
    "reset-stream": "model_cut",
    "hang-mid-stream": "model_timed_out",
    "not-an-event": "model_garbled",
    "endless-event": "model_garbled",
    "flood": "model_timed_out",
    "error-in-stream": "507",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", BEFORE)
async def test_a_fault_before_the_first_event_has_its_class_and_its_code(
    fault: str, stream: bool, tmp_path: Path
) -> None:
    kind, status, code = BEFORE[fault]
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, fake.at(fault)) as ai:
        with pytest.raises(openai.APIStatusError) as caught:
            await ai.chat.completions.create(**chat("hello", "bad", stream=stream))
        error = caught.value
        assert (type(error), error.status_code, error.code) == (kind, status, code)
        assert error.request_id
        assert error.response.headers.get("retry-after") == ("7" if fault == "too-many" else None)
        assert fault in KEPT_ALIVE or await fake.all_closed()
        await expect_job_error(server, code, error.response.headers["x-signoff-job"])


# A connection whose response was read to its end can be used again.
KEPT_ALIVE = {"html", "speech", "redirect", "too-many", "broken", "broken-by-number"}


@pytest.mark.parametrize("fault", AFTER)
async def test_a_fault_after_the_first_event_ends_the_stream_in_an_error(fault: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, fake.at(fault)) as ai:
        pieces = list[Any]()
        with pytest.raises(openai.APIError) as caught:
            async for piece in await ai.chat.completions.create(**chat("hello", "bad", stream=True)):
                pieces.append(piece)
        assert caught.value.code == AFTER[fault]
        assert fault == "flood" or 1 <= len(pieces) < len(EVENTS)
        assert fault in FINISHED or await fake.all_closed()
        await expect_job_error(server, AFTER[fault])


async def test_an_invalid_chunk_ends_the_call(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, fake.at("bad-chunk")) as ai:
        with pytest.raises(openai.APIError) as caught:
            async for _ in await ai.chat.completions.create(**chat("hello", "bad", stream=True)):
                pass
        # If the chunk arrives in one packet with the headers, nothing of it can be read.
        assert caught.value.code in {"model_cut", "model_garbled"}
        assert await fake.all_closed()
        await expect_job_error(server, str(caught.value.code))


FINISHED = {"not-an-event", "error-in-stream"}


def client(server: Live, url: str) -> Client:
    return Client(server, url)


class Client:
    """The official client of a server, to which it adds the model `bad` at `url`."""

    def __init__(self, server: Live, url: str) -> None:
        self._server = server
        self._url = url

    async def __aenter__(self) -> openai.AsyncOpenAI:
        timeouts = TIMEOUTS.get(self._url.rpartition("/")[2], Timeouts())
        await self._server.model("bad", kind="openai", url=self._url, timeouts=timeouts, attempts=1)
        key = await self._server.token()
        self._client = openai.AsyncOpenAI(base_url=self._server.url + "/v1", api_key=key, max_retries=0)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def expect_job_error(server: Live, code: str, job_id: str | None = None) -> None:
    """Wait until the job has ended, and check that it records the same fault."""

    async def ended_job() -> Job | None:
        jobs = await server.services.store.jobs.list(JobFilter())
        return jobs[0] if jobs and jobs[0].is_terminal else None

    job = await until(ended_job)
    assert job_id in {None, job.id}
    assert job.error is not None
    assert job.status == "fail"
    assert job.error.code == (code if code.startswith("model_") else "model_error")


HEAVY = ["huge-body", "gzip-bomb", "endless-event", "huge-headers"]
BOUND_MB = 300


def test_faults_take_a_limited_amount_of_memory(tmp_path: Path) -> None:
    assert len(bomb()) < 10_000_000
    asyncio.run(_measure_memory(tmp_path))


async def _measure_memory(tmp_path: Path) -> None:
    """Send a server process every heavy fault, plain and streamed at the same time, and check its peak memory."""
    environment = processes.migrated_environment(tmp_path / "data")
    port = processes.free_port()
    async with fake_upstream() as fake:
        for fault in HEAVY:
            add = ("model", "add", fault, "--kind", "openai", "--url", fake.at(fault))
            await asyncio.to_thread(processes.signoff, environment, *add)
        serving = processes.served(environment, tmp_path, port)
        server = await asyncio.to_thread(serving.__enter__)
        try:
            token = await asyncio.to_thread(processes.first_token, tmp_path)
            before_mb = _peak_mb(server.pid)
            async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0) as ai:
                for fault in HEAVY:
                    calls = [_call_with_fault(ai, fault, stream=stream) for stream in (False, True)]
                    async with asyncio.TaskGroup() as group:
                        for call in calls:
                            group.create_task(call)
            grown_mb = _peak_mb(server.pid) - before_mb
            assert grown_mb < BOUND_MB, f"{grown_mb} MB"
            assert server.poll() is None
        finally:
            await asyncio.to_thread(serving.__exit__, None, None, None)


async def _call_with_fault(ai: openai.AsyncOpenAI, fault: str, *, stream: bool) -> None:
    with pytest.raises(openai.APIError):
        answer = await ai.chat.completions.create(**chat("hello", fault, stream=stream))
        if stream:
            async for _ in answer:
                pass


def _peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) // 1024
