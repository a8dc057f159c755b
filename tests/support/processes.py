"""Real `signoff` processes for tests: start them, call them, kill them, and end them with a block."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from signoff.setting_sources import unknown_variables
from signoff.settings import Settings
from support.database_files import make_file
from support.preloaded import PreloadedProcess

T = TypeVar("T")
RUN_MANY = """
import contextlib, io, json, sys
from signoff.cli import main
results = []
for *words, stdin in json.loads(sys.argv[1]):
    sys.argv, sys.stdin, code = ["signoff", *words], io.StringIO(stdin), 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append([code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
WAIT_SECONDS = 60.0
FIRST_PORT, PORTS_PER_WORKER, MAX_WORKERS = 20_000, 600, 20
_port_numbers = itertools.count(os.getpid())  # another run of the tests at the same time begins elsewhere
SIGNOFF = (sys.executable, "-m", "signoff")


def clean_environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Return an environment without this process's settings, but with settings for tests and `more`.

    A setting that does not exist would be ignored, and the test would not test what it says.
    """
    assert not unknown_variables(more, Settings.model_fields)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    fast = {"SIGNOFF_LEASE_SECONDS": "2", "SIGNOFF_HEARTBEAT_SECONDS": "0.5", "SIGNOFF_SWEEP_SECONDS": "0.2"}
    return inherited | fast | {"SIGNOFF_DATA_DIR": str(data_dir), "SIGNOFF_ECHO_FAULTS": "1"} | more


def migrated_environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Return `clean_environment`, with a new database in `data_dir` for processes that would have to migrate it."""
    make_file(data_dir / "signoff.db")
    return clean_environment(data_dir, **more)


@contextmanager
def served(environment: dict[str, str], tmp_path: Path, port: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a server process that is ready, and end it after the block."""
    with (tmp_path / "out.txt").open("ab") as out, (tmp_path / "err.txt").open("ab") as err:
        command = (*SIGNOFF, "serve", "--port", str(port), *more)
        with PreloadedProcess(command, env=environment, stdout=out, stderr=err, cwd=tmp_path) as server:
            try:
                until(lambda: _answers(port, server))
                yield server
            finally:
                server.terminate()
    # Python reports a coroutine that nobody awaited, and an exception that nobody retrieved, in these words.
    assert not [line for line in (tmp_path / "err.txt").read_text().splitlines() if "was never " in line]


@contextmanager
def worked(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a worker process that performs jobs, and end it after the block."""
    worker = start_worker(environment)
    with worker:
        try:
            assert worker.stderr is not None
            assert any(b"Working" in line for line in worker.stderr)
            yield worker
        finally:
            worker.terminate()


def start_worker(environment: dict[str, str], *, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start a worker process and return at once; the caller ends it."""
    return PreloadedProcess((*SIGNOFF, "work"), env=environment, stderr=stderr)


def signoff(environment: dict[str, str], *command: str) -> str:
    """Run a command of the command line; return what it prints."""
    result = run_command((*SIGNOFF, *command), env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_command(command: Sequence[str], *, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python process to its end, with this input; return its exit code and what it printed."""
    pipe = subprocess.PIPE
    with PreloadedProcess(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            out, err = process.communicate(stdin, WAIT_SECONDS * 2)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_many(
    environment: dict[str, str], *commands: Sequence[str], folder: Path | None = None
) -> list[tuple[int, str, str]]:
    """Run commands one after another in one process, which saves their imports; the last word of each is its input.

    Return the exit code, the output and the error output of each.
    """
    result = run_command((sys.executable, "-c", RUN_MANY, json.dumps(commands)), env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr
    return [tuple(entry) for entry in json.loads(result.stdout)]


def first_token(tmp_path: Path) -> str:
    """Return the token that a server printed at its first start."""
    return until(lambda: re.search(r"Token: (sg_\w+)", (tmp_path / "out.txt").read_text())).group(1)


def ask(port: int, path: str, token: str, body: Any = None) -> Any:
    """Send a GET, or a POST if there is a body; return the JSON of the response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
        return json.load(response)


def verbs(port: int, token: str, job_id: str) -> list[str]:
    """Return the verbs of the events of a job."""
    return [event["verb"] for event in ask(port, f"/api/jobs/{job_id}/events", token)["data"]]


def free_port() -> int:
    """Return a port that no process listens on, and that no other test gets.

    It is below the ports that systems give to sockets by themselves, so nobody takes it before the test does.
    """
    while True:
        port = FIRST_PORT + PORTS_PER_WORKER * _worker() + next(_port_numbers) % PORTS_PER_WORKER
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _worker() -> int:
    """Return the number of this process among those that run tests in parallel."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % MAX_WORKERS


def until(look: Callable[[], T | None], seconds: float = WAIT_SECONDS) -> T:
    """Return the first value of `look` that is not None; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while (value := look()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool | None:
    assert server.poll() is None, "the server has ended"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10) as response:
            return response.status == 200 or None
    except OSError:
        return None
