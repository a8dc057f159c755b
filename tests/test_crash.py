"""Real processes on one database: killed at the worst moment, started again, many at once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
WAIT_SECONDS = 40.0
SIGNOFF = (sys.executable, "-m", "signoff")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    fast = {"SIGNOFF_LEASE_SECONDS": "2", "SIGNOFF_HEARTBEAT_SECONDS": "0.5", "SIGNOFF_SWEEP_SECONDS": "0.2"}
    return kept | fast | {"SIGNOFF_DATA_DIR": str(tmp_path / "data")}


def test_a_killed_server_answers_once_when_it_is_started_again(environment: dict[str, str], tmp_path: Path) -> None:
    # given a job that a worker is busy with
    port = free_port()
    with served(environment, tmp_path, port) as server:
        token = first_token(tmp_path)
        payload = {"messages": [{"role": "user", "content": "hello"}], "model": "echo/delay=3"}
        job_id = ask(port, "/enqueue", token, payload)["job_id"]
        until(lambda: events(port, token, job_id) == ["submit", "claim"] or None)
        # when the server is killed, and another one started
        server.send_signal(signal.SIGKILL)
        server.wait()
    with served(environment, tmp_path, port):
        job = until(lambda: when_not(port, token, job_id, "bot"))
        # then the job is answered, by one attempt, after the other one lapsed
        assert job["status"] == "human"
        assert events(port, token, job_id) == ["submit", "claim", "lapse", "claim", "hold"]


def test_no_model_process_outlives_a_killed_server(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    program = Path(__file__).parent / "models" / "httpmodel.py"
    command = f"{sys.executable} {program} --port {{port}}"
    signoff(environment, "model", "add", "mine", "--kind", "subprocess", "--serve", "--command", command)
    with served(environment, tmp_path, port) as server:
        token = signoff(environment, "token", "create", "a@example.com", "--quiet").strip()
        chat = {"model": "mine", "messages": [{"role": "user", "content": "hello"}]}
        ask(port, "/v1/chat/completions", token, chat)
        assert children_running(program)
        server.send_signal(signal.SIGKILL)
        server.wait()
    until(lambda: not children_running(program) or None)


def test_four_processes_write_one_file_and_lose_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # given a server, two workers, and a command line that makes tokens, all on one file
    port, count = free_port(), 60
    with served(environment, tmp_path, port), worked(environment), worked(environment):
        token = first_token(tmp_path)
        payload = {"messages": [{"role": "user", "content": "hello"}], "model": "echo"}
        with ThreadPoolExecutor(5) as pool:
            tokens = pool.submit(make_tokens, environment, 4)
            asked = list(pool.map(lambda _: ask(port, "/enqueue", token, payload)["job_id"], range(count)))
            made = tokens.result()
        # then every job is answered once, and every token works
        for job_id in asked:
            assert until(lambda job_id=job_id: when_not(port, token, job_id, "bot"))["status"] == "human"
            assert events(port, token, job_id) == ["submit", "claim", "hold"]
        for other in made:
            assert ask(port, "/v1/models", other, None)["object"] == "list"
    # and the file is whole
    with sqlite3.connect(tmp_path / "data" / "signoff.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (count,)


def test_a_worker_that_is_stopped_gives_its_job_back(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        with worked(environment | {"SIGNOFF_DRAIN_SECONDS": "0.2"}) as worker:
            payload = {"body": {"messages": []}, "target": "echo/delay=5"}
            job_id = ask(port, "/api/jobs", token, payload)["job_id"]
            until(lambda: events(port, token, job_id) == ["submit", "claim"] or None)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_SECONDS) == 0
        assert events(port, token, job_id) == ["submit", "claim", "release"]
        assert ask(port, f"/api/jobs/{job_id}", token, None)["attempt"] == 0


@contextmanager
def served(environment: dict[str, str], tmp_path: Path, port: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers; it is ended with the block."""
    with (tmp_path / "out.txt").open("ab") as out, (tmp_path / "err.txt").open("ab") as err:
        command = (*SIGNOFF, "serve", "--port", str(port), *more)
        with subprocess.Popen(command, env=environment, stdout=out, stderr=err, cwd=tmp_path) as server:
            try:
                until(lambda: answers(port, server))
                yield server
            finally:
                server.terminate()


@contextmanager
def worked(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker alone; it is ended with the block."""
    with subprocess.Popen((*SIGNOFF, "work"), env=environment, stderr=subprocess.PIPE) as worker:
        try:
            assert worker.stderr is not None
            assert b"Working" in worker.stderr.readline()
            yield worker
        finally:
            worker.terminate()


def signoff(environment: dict[str, str], *command: str) -> str:
    return subprocess.run((*SIGNOFF, *command), env=environment, check=True, capture_output=True, text=True).stdout


def make_tokens(environment: dict[str, str], count: int) -> list[str]:
    create = ("token", "create", "t@example.com", "--quiet")
    return [signoff(environment, *create).strip() for _ in range(count)]


def first_token(tmp_path: Path) -> str:
    return until(lambda: re.search(r"Token: (sg_\w+)", (tmp_path / "out.txt").read_text())).group(1)


def ask(port: int, path: str, token: str, body: Any) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
        return json.load(response)


def events(port: int, token: str, job_id: str) -> list[str]:
    return [event["verb"] for event in ask(port, f"/api/jobs/{job_id}/events", token, None)["data"]]


def when_not(port: int, token: str, job_id: str, status: str) -> dict[str, Any] | None:
    job = ask(port, f"/job?id={job_id}", token, None)
    return job if job["status"] != status else None


def answers(port: int, server: subprocess.Popen[bytes]) -> bool | None:
    assert server.poll() is None, "the server has ended"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1) as response:
            return response.status == 200 or None
    except OSError:
        return None


def children_running(program: Path) -> bool:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return any(str(program).encode() in line and b"warden" not in line for line in lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(look: Callable[[], T | None]) -> T:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
