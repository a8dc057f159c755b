"""Restarts of workers that exceed their memory limit, in real processes."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from signoff.infra import memory
from support.processes import (
    WAIT_SECONDS,
    ask,
    first_token,
    free_port,
    migrated_environment,
    served,
    start_worker,
    until,
    verbs,
)

LARGE_JOBS, LARGE_JOB_BYTES = 6, 4_000_000
HEADROOM_MB = 25


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of the processes."""
    return migrated_environment(tmp_path / "data", SIGNOFF_LEASE_SECONDS="30")  # large answers take a while


@contextmanager
def running_worker(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a worker that has started to work, and write its output to `worker.txt`."""
    with (tmp_path / "worker.txt").open("wb") as output, start_worker(environment, stderr=output.fileno()) as worker:
        try:
            until(lambda: "Working" in worker_output(tmp_path) or None)
            yield worker
        finally:
            worker.terminate()


def worker_output(tmp_path: Path) -> str:
    """Return what the workers have printed so far."""
    return (tmp_path / "worker.txt").read_text()


def memory_at_start_mb(environment: dict[str, str], tmp_path: Path) -> int:
    """Return the resident memory of a worker without jobs, in MiB."""
    with running_worker(environment, tmp_path) as worker:
        pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 2**20


def submit(port: int, token: str, target: str, text: str) -> str:
    """Submit a chat job, and return its id."""
    body = {"messages": [{"role": "user", "content": text}]}
    return ask(port, "/api/jobs", token, {"target": target, "body": body})["job_id"]


def wait_until_done(port: int, token: str, job_id: str) -> dict[str, Any]:
    """Wait until the job has succeeded, and return it."""

    def done_job() -> dict[str, Any] | None:
        job = ask(port, f"/api/jobs/{job_id}", token)
        return job if job["status"] == "success" else None

    return until(done_job)


def actors(port: int, token: str, job_id: str) -> set[str]:
    """Return the workers that claimed the job."""
    events = ask(port, f"/api/jobs/{job_id}/events", token)["data"]
    return {event["actor"] for event in events if event["verb"] == "claim"}


def test_a_worker_over_its_memory_limit_restarts_and_loses_no_job(environment: dict[str, str], tmp_path: Path) -> None:
    # given a limit above the memory of a new worker, several jobs with large answers, and a slow job
    environment["SIGNOFF_WORKER_MEMORY_MB"] = str(memory_at_start_mb(environment, tmp_path) + HEADROOM_MB)
    environment["SIGNOFF_DRAIN_SECONDS"] = "1.5"
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        slow = submit(port, token, "echo/delay=3", "slow")
        large = [submit(port, token, "echo/delay=0.3", "x" * LARGE_JOB_BYTES) for _ in range(LARGE_JOBS)]
        # when one worker performs them all
        with running_worker(environment, tmp_path) as worker:
            # then all are done, the slow job in a later attempt, which counts as the first
            assert [wait_until_done(port, token, job)["attempt"] for job in (slow, *large)] == [1] * (1 + LARGE_JOBS)
            _, *earlier, claim, succeed = verbs(port, token, slow)
            assert earlier == ["claim", "release"] * (len(earlier) // 2)
            assert (claim, succeed) == ("claim", "succeed")
            # and the worker has restarted in the same process and continues
            later = submit(port, token, "echo", "later")
            wait_until_done(port, token, later)
            assert worker.poll() is None
            [actor] = actors(port, token, slow) | actors(port, token, later)
            assert actor.endswith(f":{worker.pid}")
            # and it restarted at most once for each claim of a large job
            restarts = worker_output(tmp_path).count("it finishes its jobs")
            assert 1 <= restarts <= sum(verbs(port, token, job).count("claim") for job in large)
            assert worker_output(tmp_path).count("Working, ") == 1 + restarts
            worker.terminate()
            assert worker.wait(WAIT_SECONDS) == 0


def test_a_worker_that_is_stopped_during_a_restart_stops(environment: dict[str, str], tmp_path: Path) -> None:
    environment["SIGNOFF_WORKER_MEMORY_MB"] = str(memory_at_start_mb(environment, tmp_path) + HEADROOM_MB)
    environment["SIGNOFF_DRAIN_SECONDS"] = "4"
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        large = [submit(port, token, "echo/delay=60", "x" * LARGE_JOB_BYTES) for _ in range(LARGE_JOBS)]
        with running_worker(environment, tmp_path) as worker:
            until(lambda: "it finishes its jobs" in worker_output(tmp_path) or None)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_SECONDS) == 0
        assert worker_output(tmp_path).count("Working, ") == 1
        assert verbs(port, token, large[0]) == ["submit", "claim", "release"]
        assert ask(port, f"/api/jobs/{large[0]}", token)["attempt"] == 0


def test_a_memory_limit_below_that_of_a_new_worker_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    environment["SIGNOFF_WORKER_MEMORY_MB"] = "10"
    with start_worker(environment) as worker:
        _, error_output = worker.communicate(timeout=WAIT_SECONDS)
    assert worker.returncode == 1
    assert re.fullmatch(
        rb"worker_memory_mb must be higher than \d+, which a worker uses at its start\.\n", error_output
    )


def test_a_restarted_worker_over_its_limit_keeps_running(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"SIGNOFF_WORKER_MEMORY_MB": "10", "SIGNOFF_WORKER_RESTARTED": "1"}
    with running_worker(environment, tmp_path):
        assert "it ignores the memory limit" in worker_output(tmp_path)


def test_memory_is_measured_without_proc_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = memory.resident_mb()
    monkeypatch.setattr(memory, "STATM", tmp_path / "nowhere")
    assert 0 < now <= memory.resident_mb() < 100 * now
