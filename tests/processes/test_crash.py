"""Real processes on one database: killed at critical moments, restarted, and many at once."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from random import Random
from subprocess import Popen
from typing import Any

import pytest

from fakes.programs import HTTP_MODEL
from signoff.core.job import TERMINAL
from signoff.core.transitions import TRANSITIONS
from support.processes import (
    WAIT_SECONDS,
    ask,
    clean_environment,
    first_token,
    free_port,
    migrated_environment,
    served,
    signoff,
    until,
    verbs,
    worked,
)

SUBMITTERS = 6
MIN_ACCEPTED = 40
ENDS = {verb for verb, transition in TRANSITIONS.items() if TERMINAL & set(transition.targets)} - {"lapse"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of the processes."""
    return migrated_environment(tmp_path / "data")


def test_a_job_of_a_killed_server_is_answered_once_after_a_restart(environment: dict[str, str], tmp_path: Path) -> None:
    # given a job that a worker performs
    port = free_port()
    with served(environment, tmp_path, port) as server:
        token = first_token(tmp_path)
        payload = {"messages": [{"role": "user", "content": "hello"}], "model": "echo/delay=3"}
        job_id = ask(port, "/enqueue", token, payload)["job_id"]
        until(lambda: verbs(port, token, job_id) == ["submit", "claim"] or None)
        # when the server is killed, and another one started
        server.send_signal(signal.SIGKILL)
        server.wait()
    with served(environment, tmp_path, port):
        job = until(lambda: job_unless_status(port, token, job_id, "bot"))
        # then a second attempt answers the job after the lease of the first has lapsed
        assert job["status"] == "human"
        assert verbs(port, token, job_id) == ["submit", "claim", "lapse", "claim", "hold"]


def test_a_caller_whose_server_was_killed_returns_to_the_held_job(environment: dict[str, str], tmp_path: Path) -> None:
    signoff(environment, "model", "add", "held", "--kind", "echo", "--review", "always")
    call = {"model": "held", "messages": [{"role": "user", "content": "secret"}]}
    port = free_port()
    with ThreadPoolExecutor(2) as pool, sqlite3.connect(tmp_path / "data" / "signoff.db") as database:
        with served(environment, tmp_path, port) as server:
            # given a caller who waits for a held answer, which the reviewer sees
            token = first_token(tmp_path)
            cut_off = pool.submit(ask, port, "/v1/chat/completions", token, call)
            until(lambda: database.execute("SELECT 1 FROM departures").fetchone())
            [held] = ask(port, "/jobs", token)
            job = f"/job?id={held['job_id']}"
            assert (held["status"], ask(port, job, token)["caller_left_at"]) == ("human", None)
            # when the server is killed, and another one started
            server.kill()
            server.wait()
        assert isinstance(cut_off.exception(), OSError | HTTPException)
        with served(environment, tmp_path, port):
            # then the reviewer sees that the caller has left, until the same request comes again
            until(lambda: ask(port, job, token)["caller_left_at"])
            returned = pool.submit(ask, port, "/v1/chat/completions", token, call)
            until(lambda: ask(port, job, token)["caller_left_at"] is None or None)
            ask(port, "/reviewJob", token, {"id": held["job_id"], "status": "success"})
            assert returned.result()["choices"][0]["message"]["content"] == "secret"
            assert len(ask(port, "/jobs", token)) == 1


def test_no_model_process_outlives_a_killed_server(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    command = f"{sys.executable} {HTTP_MODEL} --port {{port}}"
    signoff(environment, "model", "add", "mine", "--kind", "subprocess", "--serve", "--command", command)
    with served(environment, tmp_path, port) as server:
        token = signoff(environment, "token", "create", "a@example.com", "--quiet").strip()
        chat = {"model": "mine", "messages": [{"role": "user", "content": "hello"}]}
        ask(port, "/v1/chat/completions", token, chat)
        assert has_processes(HTTP_MODEL)
        server.send_signal(signal.SIGKILL)
        server.wait()
    until(lambda: not has_processes(HTTP_MODEL) or None)


def test_four_processes_write_one_sqlite_file_without_loss(environment: dict[str, str], tmp_path: Path) -> None:
    # given a server, two workers, and a command that creates tokens, all on one file
    port, count = free_port(), 30
    with served(environment, tmp_path, port), worked(environment), worked(environment):
        token = first_token(tmp_path)
        payload = {"messages": [{"role": "user", "content": "hello"}], "model": "echo"}
        with ThreadPoolExecutor(5) as pool:
            token_task = pool.submit(make_tokens, environment, 2)
            job_ids = list(pool.map(lambda _: ask(port, "/enqueue", token, payload)["job_id"], range(count)))
            created_tokens = token_task.result()
        # then every job is answered once, and every token works
        for job_id in job_ids:
            assert until(lambda job_id=job_id: job_unless_status(port, token, job_id, "bot"))["status"] == "human"
            assert verbs(port, token, job_id) == ["submit", "claim", "hold"]
        for other in created_tokens:
            assert ask(port, "/v1/models", other)["object"] == "list"
    # and the file is intact
    with sqlite3.connect(tmp_path / "data" / "signoff.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (count,)


def test_a_worker_that_is_stopped_releases_its_job(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        with worked(environment | {"SIGNOFF_DRAIN_SECONDS": "0.2"}) as worker:
            payload = {"body": {"messages": []}, "target": "echo/delay=5"}
            job_id = ask(port, "/api/jobs", token, payload)["job_id"]
            until(lambda: verbs(port, token, job_id) == ["submit", "claim"] or None)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_SECONDS) == 0
        assert verbs(port, token, job_id) == ["submit", "claim", "release"]
        assert ask(port, f"/api/jobs/{job_id}", token)["attempt"] == 0


def test_a_kill_after_an_acknowledgement_loses_no_job(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with served(environment, tmp_path, port) as server:
        token = first_token(tmp_path)
        accepted = submit_until_killed([port], token, [server])
    with served(environment, tmp_path, port):
        assert_all_end_once(port, token, accepted)


def test_a_kill_of_all_servers_and_workers_loses_no_job(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str, prefix: str
) -> None:
    services = {"SIGNOFF_DATABASE_URL": postgres_url, "SIGNOFF_AMQP_URL": rabbitmq_url, "SIGNOFF_QUEUE_NAME": prefix}
    environment = clean_environment(tmp_path / "data", **services)
    signoff(environment, "migrate")
    token = signoff(environment, "token", "create", "a@example.com", "--role", "admin", "--quiet").strip()
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(worked(environment)) for _ in range(2)]
        processes += [stack.enter_context(served(environment, tmp_path, port, "--no-work")) for port in ports]
        accepted = submit_until_killed(ports, token, processes)
    with worked(environment), served(environment, tmp_path, ports[0], "--no-work"):
        assert_all_end_once(ports[0], token, accepted)


def submit_until_killed(ports: list[int], token: str, processes: Sequence[Popen[bytes]]) -> list[str]:
    """Submit jobs until all processes are killed at a random moment; return the ids of the accepted jobs."""
    accepted = list[str]()

    def submit(number: int) -> None:
        body = {"target": "echo/delay=0.02", "body": {"messages": []}}
        with contextlib.suppress(OSError, HTTPException):  # killed
            while True:
                accepted.append(ask(ports[number % len(ports)], "/api/jobs", token, body)["job_id"])

    with ThreadPoolExecutor(SUBMITTERS) as pool:
        for number in range(SUBMITTERS):
            pool.submit(submit, number)
        kill_count = MIN_ACCEPTED + Random().randrange(MIN_ACCEPTED)
        try:
            until(lambda: len(accepted) >= kill_count or None)
        finally:
            for process in processes:
                process.kill()
    for process in processes:
        process.wait()
    return accepted


def assert_all_end_once(port: int, token: str, accepted: list[str]) -> None:
    """Wait until no job is left, and assert that each accepted job succeeded exactly once."""
    until(lambda: ask(port, "/api/jobs?status=bot&limit=1&total=1", token)["total"] == 0 or None)
    ends = [[verb for verb in verbs(port, token, job_id) if verb in ENDS] for job_id in accepted]
    assert len(ends) >= MIN_ACCEPTED
    assert ends == [["succeed"]] * len(accepted)


def make_tokens(environment: dict[str, str], count: int) -> list[str]:
    """Create `count` tokens with the command line, and return them."""
    create = ("token", "create", "t@example.com", "--quiet")
    return [signoff(environment, *create).strip() for _ in range(count)]


def job_unless_status(port: int, token: str, job_id: str, status: str) -> dict[str, Any] | None:
    """Return the job if it has another status than `status`; else None."""
    job = ask(port, f"/job?id={job_id}", token)
    return job if job["status"] != status else None


def has_processes(program: Path) -> bool:
    """Return True if a process runs `program`."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return any(str(program).encode() in line and b"watchdog" not in line for line in lines)
