"""Several servers and workers on one PostgreSQL and one RabbitMQ, while workers are killed or paused."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from support.processes import ask, clean_environment, free_port, served, signoff, start_worker, until, verbs, worked

pytestmark = pytest.mark.anyio
WORKERS = 3
COUNT = 10_000


@pytest.mark.long  # a shorter version is part of the fault tests
@pytest.mark.timeout(900)
async def test_killed_workers_lose_nothing_and_settle_nothing_twice(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # given two servers and three workers, of which one is killed every half second
    environment = clean_environment(
        tmp_path / "data",
        SIGNOFF_DATABASE_URL=postgres_url,
        SIGNOFF_AMQP_URL=rabbitmq_url,
        SIGNOFF_QUEUE_NAME=prefix,
        SIGNOFF_LATER_ATTEMPTS="50",
    )
    signoff(environment, "migrate")
    token = signoff(environment, "token", "create", "a@example.com", "--role", "admin", "--quiet").strip()
    ports = [free_port(), free_port()]
    with served(environment, tmp_path, ports[0], "--no-work"), served(environment, tmp_path, ports[1], "--no-work"):
        with kill_workers(environment, tmp_path) as kills:
            # when many jobs are submitted
            body = {"body": {"messages": []}, "target": "echo/delay=0.02"}

            def submit(number: int) -> str:
                return ask(ports[number % 2], "/api/jobs", token, body)["job_id"]

            with ThreadPoolExecutor(8) as pool:
                accepted = list(pool.map(submit, range(COUNT)))
            until(
                lambda: ask(ports[0], "/api/jobs?status=bot&limit=1&total=1", token)["total"] == 0 or None, seconds=600
            )
        # then each was answered once, and some workers were killed while they performed jobs
        statuses = Counter[str]()
        database = await asyncpg.connect(postgres_url)
        try:
            for row in await database.fetch("SELECT id, status FROM jobs"):
                statuses[row["status"]] += 1
            ends = await database.fetch("SELECT job_id, count(*) FROM events WHERE verb = 'succeed' GROUP BY 1")
            lapses = await database.fetchval("SELECT count(*) FROM events WHERE verb = 'lapse'")
        finally:
            await database.close()
        assert len(set(accepted)) == COUNT
        assert statuses == {"success": COUNT}
        assert {row["count"] for row in ends} == {1}
        assert {row["job_id"] for row in ends} == set(accepted)
        with capsys.disabled():
            sys.stdout.write(f"jobs {COUNT}, kills {len(kills)}, lapses {lapses}, lost 0" + "\n")
        assert kills
        assert lapses > 0


@contextmanager
def kill_workers(environment: dict[str, str], folder: Path) -> Iterator[list[float]]:
    """Run workers; every half second, kill and replace one if several work. Yield the times of the kills."""
    kills, done, generator = list[float](), threading.Event(), random.Random(1)
    names = (folder / f"worker-{number}.txt" for number in itertools.count())

    def start() -> tuple[subprocess.Popen[bytes], Path]:
        output = next(names)
        with output.open("wb") as stderr:
            return start_worker(environment, stderr=stderr.fileno()), output

    workers = [start() for _ in range(WORKERS)]

    def kill() -> None:
        while not done.wait(0.5):
            # The slower the machine, the longer a worker takes to start: one is left to work meanwhile.
            working = [number for number, (_, output) in enumerate(workers) if b"Working" in output.read_bytes()]
            if len(working) > 1:
                number = generator.choice(working)
                workers[number][0].kill()
                workers[number][0].wait()
                kills.append(time.monotonic())
                workers[number] = start()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        done.set()
        thread.join()
        for worker, _ in workers:
            worker.terminate()
        for worker, _ in workers:
            worker.wait()


async def test_a_worker_that_was_paused_beyond_its_lease_cannot_change_its_job(
    tmp_path: Path, postgres_url: str
) -> None:
    # given a worker that is paused while it performs a job
    settings = {"SIGNOFF_DATABASE_URL": postgres_url, "SIGNOFF_LEASE_SECONDS": "6"}
    environment = clean_environment(tmp_path / "data", **settings)
    signoff(environment, "migrate")
    token = signoff(environment, "token", "create", "a@example.com", "--quiet").strip()
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"), worked(environment) as worker:
        job = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo/delay=3"})["job_id"]
        until(lambda: verbs(port, token, job) == ["submit", "claim"] or None)
        worker.send_signal(signal.SIGSTOP)
        try:
            # when another worker takes the job over, and the first one continues
            with worked(environment):
                until(lambda: verbs(port, token, job)[-1] == "succeed" or None)
            before = ask(port, f"/api/jobs/{job}/events", token)
        finally:
            worker.send_signal(signal.SIGCONT)
        other = ask(port, "/api/jobs", token, {"body": {"messages": []}, "target": "echo"})["job_id"]
        until(lambda: verbs(port, token, other)[-1] == "succeed" or None)
        # then it performs jobs again, and its former job is unchanged
        assert ask(port, f"/api/jobs/{job}/events", token) == before
        assert verbs(port, token, job) == ["submit", "claim", "lapse", "claim", "succeed"]
