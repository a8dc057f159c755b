"""Clients that send no sign of a retry: Vercel's AI SDK and DSPy, unmodified, in programs of their own.

Their packages are installed by the first test, from locks with hashes; so these tests are long ones, and need `npm`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
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
LOCK = FOLDER.parents[1] / "requirements" / "clients.txt"
INSTALL_SECONDS = 240.0
Start = Callable[..., list[str]]


@pytest.fixture(scope="session")
def ai_sdk(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return a function that returns the command of the AI SDK's program."""
    folder = tmp_path_factory.mktemp("ai_sdk")
    for name in ("package.json", "package-lock.json", "ai_sdk.mjs"):
        shutil.copy(FOLDER / name, folder)
    install(["npm", "ci", "--no-audit", "--no-fund"], folder)
    return lambda url, token, model, kind="whole": ["node", str(folder / "ai_sdk.mjs"), url, token, model, kind]


@pytest.fixture(scope="session")
def dspy(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return a function that returns the command of DSPy's program."""
    folder = tmp_path_factory.mktemp("dspy")
    uv, python = Path(sys.executable).with_name("uv"), folder / "venv" / "bin" / "python"
    install([str(uv), "venv", "-q", "venv", "--python", sys.executable], folder)
    command = [str(uv), "pip", "install", "-q", "--system-certs", "--python", str(python), "--require-hashes"]
    install([*command, "-r", str(LOCK)], folder)
    return lambda url, token, model: [str(python), str(FOLDER / "dspy_client.py"), url, token, model]


def install(command: Sequence[str], folder: Path) -> None:
    """Run a command that installs packages in `folder`; fail with its output."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


async def run(command: Sequence[str], prompt: str) -> asyncio.subprocess.Process:
    """Start a client with a prompt."""
    return await asyncio.create_subprocess_exec(*command, prompt, stdout=asyncio.subprocess.PIPE)


async def output_of(client: asyncio.subprocess.Process) -> dict[str, object]:
    """Return what a client prints when it has its answer."""
    output, _ = await client.communicate()
    assert client.returncode == 0
    return json.loads(output.splitlines()[-1])


async def held_job(server: Live) -> Job | None:
    """Return the held job for whose answer a client waits; None if there is none."""
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    waiting = server.services.runtime.caller_leases.is_waiting
    return next((job for job in jobs if waiting(job.id)), None)


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
