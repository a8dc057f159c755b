"""A worker that takes too much memory ends its jobs in order and starts itself anew, in real processes."""

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
    clean_environment,
    first_token,
    free_port,
    served,
    start_worker,
    until,
    verbs,
)

HOGS, HOG_BYTES = 6, 4_000_000
ROOM_MB = 25


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(tmp_path / "data", SIGNOFF_LEASE_SECONDS="30")  # large answers take a while


@contextmanager
def working(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has begun to work; what it says is in `worker.txt`."""
    with (tmp_path / "worker.txt").open("wb") as said, start_worker(environment, stderr=said.fileno()) as worker:
        try:
            until(lambda: "Working" in heard(tmp_path) or None)
            yield worker
        finally:
            worker.terminate()


def heard(tmp_path: Path) -> str:
    return (tmp_path / "worker.txt").read_text()


def enough_at_start_mb(environment: dict[str, str], tmp_path: Path) -> int:
    """What a worker takes that has nothing to do yet."""
    with working(environment, tmp_path) as worker:
        pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 2**20


def submitted(port: int, token: str, target: str, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}]}
    return ask(port, "/api/jobs", token, {"target": target, "body": body})["job_id"]


def when_done(port: int, token: str, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = ask(port, f"/api/jobs/{job_id}", token)
        return job if job["status"] == "success" else None

    return until(look)


def actors(port: int, token: str, job_id: str) -> set[str]:
    """The workers that claimed a job."""
    events = ask(port, f"/api/jobs/{job_id}/events", token)["data"]
    return {event["actor"] for event in events if event["verb"] == "claim"}


def test_a_worker_that_has_grown_starts_anew_and_loses_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # given a bound above what a worker takes at first, and jobs with large answers beside a slow one
    environment["SIGNOFF_WORKER_MEMORY_MB"] = str(enough_at_start_mb(environment, tmp_path) + ROOM_MB)
    environment["SIGNOFF_DRAIN_SECONDS"] = "1.5"
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        slow = submitted(port, token, "echo/delay=3", "slow")
        hogs = [submitted(port, token, "echo/delay=0.3", "x" * HOG_BYTES) for _ in range(HOGS)]
        # when a worker takes them all
        with working(environment, tmp_path) as worker:
            # then all are done, the slow one by a later attempt, which counts as the first
            assert [when_done(port, token, job)["attempt"] for job in (slow, *hogs)] == [1] * (1 + HOGS)
            _, *given_back, claim, succeed = verbs(port, token, slow)
            assert given_back == ["claim", "release"] * (len(given_back) // 2)
            assert (claim, succeed) == ("claim", "succeed")
            # and the worker has started anew, as the same process, and goes on
            later = submitted(port, token, "echo", "later")
            when_done(port, token, later)
            assert worker.poll() is None
            [actor] = actors(port, token, slow) | actors(port, token, later)
            assert actor.endswith(f":{worker.pid}")
            # and each time after it had taken a large answer at least
            anew = heard(tmp_path).count("it ends its jobs and restarts")
            assert 1 <= anew <= sum(verbs(port, token, job).count("claim") for job in hogs)
            assert heard(tmp_path).count("Working, ") == 1 + anew
            worker.terminate()
            assert worker.wait(WAIT_SECONDS) == 0


def test_a_worker_that_is_stopped_while_it_starts_anew_stops(environment: dict[str, str], tmp_path: Path) -> None:
    environment["SIGNOFF_WORKER_MEMORY_MB"] = str(enough_at_start_mb(environment, tmp_path) + ROOM_MB)
    environment["SIGNOFF_DRAIN_SECONDS"] = "4"
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"):
        token = first_token(tmp_path)
        hogs = [submitted(port, token, "echo/delay=60", "x" * HOG_BYTES) for _ in range(HOGS)]
        with working(environment, tmp_path) as worker:
            until(lambda: "it ends its jobs and restarts" in heard(tmp_path) or None)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(WAIT_SECONDS) == 0
        assert heard(tmp_path).count("Working, ") == 1
        assert verbs(port, token, hogs[0]) == ["submit", "claim", "release"]
        assert ask(port, f"/api/jobs/{hogs[0]}", token)["attempt"] == 0


def test_a_bound_that_a_new_worker_exceeds_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    environment["SIGNOFF_WORKER_MEMORY_MB"] = "10"
    with start_worker(environment) as worker:
        _, said = worker.communicate(timeout=WAIT_SECONDS)
    assert worker.returncode == 1
    assert re.fullmatch(rb"worker_memory_mb must be higher than \d+, which a worker uses at its start\.\n", said)


def test_a_worker_that_has_started_anew_does_not_vanish(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"SIGNOFF_WORKER_MEMORY_MB": "10", "SIGNOFF_WORKER_RESTARTED": "1"}
    with working(environment, tmp_path):
        assert "it ignores the memory limit" in heard(tmp_path)


def test_memory_is_told_without_proc_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = memory.resident_mb()
    monkeypatch.setattr(memory, "STATM", tmp_path / "nowhere")
    assert 0 < now <= memory.resident_mb() < 100 * now
