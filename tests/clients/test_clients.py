"""Clients that are installed apart: Vercel's AI SDK, DSPy and ProtoLLM, unmodified, in programs of their own.

The first two send no sign of a retry.

Their packages are installed by the first test, from locks with hashes; so these tests are long ones, and need `npm`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fakes.tcp_proxy import TcpProxy
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, live, until

pytestmark = [pytest.mark.anyio, pytest.mark.long]
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
FOLDER = Path(__file__).parent
# Node's `fetch` waits so long for the head of a response.
NODE_SECONDS = 300.0
Start = Callable[..., list[str]]


@pytest.fixture(scope="session")
def ai_sdk(node: Path) -> Start:
    """Return a function that returns the command of the AI SDK's program."""
    return lambda url, token, model, kind="whole": ["node", str(node / "ai_sdk.mjs"), url, token, model, kind]


@pytest.fixture(scope="session")
def dspy(python: str) -> Start:
    """Return a function that returns the command of DSPy's program."""
    return lambda url, token, model: [python, str(FOLDER / "dspy_client.py"), url, token, model]


async def run(command: Sequence[str], prompt: str) -> asyncio.subprocess.Process:
    """Start a client with a prompt."""
    return await asyncio.create_subprocess_exec(*command, prompt, stdout=asyncio.subprocess.PIPE)


async def output_of(client: asyncio.subprocess.Process) -> dict[str, object]:
    """Return what a client prints when it has its answer."""
    output, _ = await client.communicate()
    assert client.returncode == 0
    return json.loads(output.splitlines()[-1])


async def held_job(server: Live, text: str = "") -> Job | None:
    """Return the held job with `text` for whose answer a client waits; None if there is none."""
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    waiting = server.services.runtime.caller_leases.is_waiting
    return next((job for job in jobs if waiting(job.id) and text.encode() in job.body), None)


@pytest.mark.parametrize("kind", ["whole", "stream"])
async def test_the_ai_sdk_gets_answers_at_once_and_signed_off_ones(ai_sdk: Start, kind: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("careful", review="always")
        token = await server.token()
        answer = await output_of(await run(ai_sdk(server.url, token, "echo", kind), "one two"))
        assert answer == {"text": "one two", "tokens": 4}
        client = await run(ai_sdk(server.url, token, "careful", kind), "a secret")
        job = await until(lambda: held_job(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert await output_of(client) == {"text": "a secret", "tokens": 4}


@pytest.mark.parametrize("name", ["ai_sdk", "dspy"])
async def test_a_client_that_gives_up_and_tries_again_gets_the_answer_to_its_first_request(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    start: Start = request.getfixturevalue(name)
    async with live(tmp_path) as server, TcpProxy(server.url) as proxy:
        await server.model("careful", review="always")
        client = await run(start(proxy.url, await server.token(), "careful"), "a secret")
        job = await until(lambda: held_job(server))
        # as at the end of the client's patience, which may be five minutes
        proxy.cut()

        async def has_left() -> bool | None:
            return bool(await server.services.store.departures.left_at([job.id])) or None

        await until(has_left)
        assert (await until(lambda: held_job(server))).id == job.id
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert (await output_of(client))["text"] == "a secret"
        assert len(await server.services.store.jobs.list(JobFilter())) == 1


@pytest.mark.timeout(NODE_SECONDS + 180)
async def test_node_gives_up_after_five_minutes_and_gets_its_answer_as_its_streams_do(
    ai_sdk: Start, tmp_path: Path
) -> None:
    async with live(tmp_path, hold_seconds=2 * NODE_SECONDS) as server:
        await server.model("careful", review="always")
        token, approve = await server.token(), VerdictRequest(verdict="approve")
        whole = await run(ai_sdk(server.url, token, "careful", "whole"), "a secret")
        stream = await run(ai_sdk(server.url, token, "careful", "stream"), "a long story")
        job, story = await until(lambda: held_job(server, "secret")), await until(lambda: held_job(server, "story"))

        async with asyncio.timeout(NODE_SECONDS + 60):
            while not await server.services.store.departures.left_at([job.id]):
                await asyncio.sleep(1)
        assert (await until(lambda: held_job(server, "secret"))).id == job.id
        assert (await until(lambda: held_job(server, "story"))).id == story.id
        for job_id in (job.id, story.id):
            await decide(server.services, REVIEWER, job_id, approve)
        assert (await output_of(whole))["text"] == "a secret"
        assert (await output_of(stream))["text"] == "a long story"
        assert len(await server.services.store.jobs.list(JobFilter())) == 2


async def test_the_client_of_protollm_gets_the_answers_of_both_routes(python: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        command = [python, str(FOLDER / "protollm_client.py"), server.url, await server.token(), "echo"]
        assert await output_of(await run(command, "one two")) == {"answers": ["one two", "one two"]}
