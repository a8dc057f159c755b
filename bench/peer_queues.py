"""Job queues that are measured beside each other: how each is prepared, and how it keeps its jobs.

`make bench-peers` installs them in `.bench/queues`. All run a job that returns its text. Messages are durable and
published with confirms, rows are committed to disk, and a job is acknowledged after it was performed.
"""

import asyncio
import json
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg

import jobs
from load import MARK, Load, run_load
from peer_gateways import python_version
from process_tree import ProcessTree
from queue_services import Services, query
from result import ROOT, commit

PROGRAMS = ROOT / "bench/peers"
ENVIRONMENT = ROOT / ".bench/queues/bin"
PRODUCERS = 32
LATENCY_PAUSE_SECONDS = 0.01
AWA_DONE = """
    SELECT coalesce((SELECT sum(completed_count) FROM awa.receipt_completion_batches), 0)::bigint
        + coalesce((SELECT sum(pruned_completed_count) FROM awa.queue_terminal_rollups), 0)::bigint
"""
"""Number of jobs that Awa has completed; those of more than some seconds ago are only in its sums."""
LIMIT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Figures of jobs that were enqueued."""

    began: float
    """Time of the first one, on the monotonic clock."""
    rate: float
    """Jobs per second."""
    cpu_seconds: float
    """CPU time of the producer."""


class Queue(Protocol):
    """Queue that is ready for jobs, and has no worker yet."""

    pids: Sequence[int]
    """Its own processes, besides the worker and the services."""

    def worker(self) -> ProcessTree:
        """Start a worker."""

    def enqueue(self, count: int) -> Accepted:
        """Enqueue jobs, PRODUCERS at a time."""

    def latencies_ms(self, count: int) -> list[float]:
        """Return the milliseconds from each of some jobs to its answer, one job after another."""

    def done(self) -> int:
        """Return the number of jobs that are done."""


@dataclass(frozen=True, kw_only=True)
class System:
    """Job queue that can be measured."""

    name: str
    title: str
    keeps: str
    """Where its jobs and answers are, and how it runs."""
    version: Callable[[], str | None]
    """Function that returns the version; None if it is not installed."""
    start: Callable[[Services, Path, ExitStack, int], Queue]
    """Function of the services, an empty folder, a stack to end it, and a number that is new in each turn."""


class SignoffQueue:
    """Signoff with a server and a worker, as `signoff serve --no-work` and `signoff work`."""

    def __init__(self, root: Path, folder: Path, settings: Mapping[str, str], stack: ExitStack) -> None:
        self._program, self._folder, self._settings = root / ".venv/bin/signoff", folder, settings
        self._server = self._run("serve", "--no-work", "--port", "0")
        stack.callback(self._server.close)
        match = self._server.wait_for(rb"http://127\.0\.0\.1:(\d+)\n[\s\S]*Token: (\S+)")
        self._port, self._token = int(match[1]), match[2].decode()
        self._done = stack.enter_context(jobs.counting(folder, settings.get("SIGNOFF_DATABASE_URL")))
        self.pids = (self._server.pid,)

    def worker(self) -> ProcessTree:
        return self._run("work")

    def enqueue(self, count: int) -> Accepted:
        body = json.dumps(jobs.payload_of(f"job {MARK}"))
        head = f"POST /api/jobs HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._token}\r\n"
        request = self._folder / "request"
        request.write_text(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}")
        before, began = children_cpu_seconds(), time.monotonic()
        load = Load(connections=PRODUCERS)
        figures = run_load(load, request, self._port, seconds=LIMIT_SECONDS, core=None, requests=count)
        if figures.failures or figures.answers != count:
            raise SystemExit(f"Signoff accepted {figures.answers} of {count} jobs.")
        return Accepted(began=began, rate=figures.rate, cpu_seconds=children_cpu_seconds() - before)

    def latencies_ms(self, count: int) -> list[float]:
        return asyncio.run(self._latencies_ms(count))

    def done(self) -> int:
        return self._done()

    async def _latencies_ms(self, count: int) -> list[float]:
        connection, latencies = await jobs.connect(self._port, self._token), list[float]()
        for number in range(count):
            began = time.perf_counter()
            job = await connection.ask("POST", "/api/jobs", jobs.payload_of(f"latency {number}"))
            answer = await connection.ask("GET", f"/api/jobs/{job['job_id']}?wait=30")
            if answer["status"] != "success":
                raise SystemExit(f"A job ended as {answer}.")
            latencies.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(LATENCY_PAUSE_SECONDS)
        return latencies

    def _run(self, *words: str) -> ProcessTree:
        command = [self._program, *words]
        return ProcessTree(command, core=None, folder=self._folder, settings=self._settings, output=words[0])


class PeerQueue:
    """Queue of another project, with a program in `bench/peers/` that enqueues, and a worker."""

    pids = ()

    def __init__(
        self, program: str, worker: Sequence[str | Path], folder: Path, urls: Mapping[str, str], done: Callable[[], int]
    ) -> None:
        self._program, self._worker, self._folder, self._urls, self.done = program, worker, folder, urls, done

    def worker(self) -> ProcessTree:
        settings = {**self._urls, "PYTHONPATH": str(PROGRAMS)}
        return ProcessTree(self._worker, core=None, folder=self._folder, settings=settings)

    def enqueue(self, count: int) -> Accepted:
        figures = json.loads(run_peer(self._program, "enqueue", str(count), urls=self._urls))
        # The first one connects, and is not timed.
        rate = (count - 1) / figures["seconds"]
        return Accepted(began=figures["began"], rate=rate, cpu_seconds=figures["cpu_seconds"])

    def latencies_ms(self, count: int) -> list[float]:
        return json.loads(run_peer(self._program, "latency", str(count), urls=self._urls))


def run_peer(program: str, *words: str, urls: Mapping[str, str]) -> bytes:
    """Run a program in `bench/peers/` to its end, and return what it printed."""
    command = [ENVIRONMENT / "python", PROGRAMS / program, *words]
    return subprocess.run(command, env={**urls, "PATH": "/usr/bin:/bin"}, check=True, stdout=subprocess.PIPE).stdout


def children_cpu_seconds() -> float:
    """Return the CPU time of all programs that this one has run to their end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def redis_size(url: str) -> int:
    """Return the number of keys of a database of Redis, which costs it nothing."""
    address, _, number = url.removeprefix("redis://").partition("/")
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as link:
        link.sendall(f"SELECT {number}\r\nDBSIZE\r\n".encode())
        text = b""
        while text.count(b"\r\n") < 2:
            text += link.recv(4096)
    return int(text.split(b":")[1])


def with_redis(program: str, worker: str) -> Callable[[Services, Path, ExitStack, int], Queue]:
    """Return a function that starts a queue with RabbitMQ whose results are keys of Redis, which are counted."""

    def start(services: Services, folder: Path, _stack: ExitStack, turn: int) -> Queue:
        urls = {"AMQP_URL": services.amqp, "REDIS_URL": f"{services.redis}/{turn % 16}"}
        flush(urls["REDIS_URL"])
        name, *words = worker.split()
        command = [ENVIRONMENT / name, *words]
        return PeerQueue(program, command, folder, urls, lambda: redis_size(urls["REDIS_URL"]))

    return start


def flush(url: str) -> None:
    """Empty a database of Redis."""
    address, _, number = url.removeprefix("redis://").partition("/")
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as link:
        link.sendall(f"SELECT {number}\r\nFLUSHDB\r\n".encode())
        link.recv(4096)


def start_awa(services: Services, folder: Path, stack: ExitStack, turn: int) -> Queue:
    """Start Awa on a new database."""
    url = new_database(services, f"awa_{turn}")
    urls = {"DATABASE_URL": url}
    run_peer("awa_app.py", "migrate", urls=urls)
    worker = [ENVIRONMENT / "python", PROGRAMS / "awa_app.py", "work"]
    runner = stack.enter_context(asyncio.Runner())
    connection = runner.run(asyncpg.connect(url))
    stack.callback(lambda: runner.run(connection.close()))
    return PeerQueue("awa_app.py", worker, folder, urls, lambda: runner.run(connection.fetchval(AWA_DONE)))


def new_database(services: Services, name: str) -> str:
    """Create a database, and return its URL."""
    query(f"{services.postgres}/postgres", f"CREATE DATABASE {name}")
    return f"{services.postgres}/{name}"


def signoff_systems(root: Path) -> list[System]:
    """Return the Signoff of a checkout with services, and with one file."""

    def with_services(services: Services, folder: Path, stack: ExitStack, turn: int) -> Queue:
        settings = {"SIGNOFF_DATABASE_URL": new_database(services, f"signoff_{turn}")}
        settings |= {"SIGNOFF_AMQP_URL": services.amqp, "SIGNOFF_QUEUE_NAME": f"signoff-{turn}"}
        command, environment = [root / ".venv/bin/signoff", "migrate"], {**settings, "PATH": "/usr/bin:/bin"}
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return SignoffQueue(root, folder, settings, stack)

    def with_a_file(_services: Services, folder: Path, stack: ExitStack, _turn: int) -> Queue:
        return SignoffQueue(root, folder, {}, stack)

    def version() -> str | None:
        return commit(root) if (root / ".venv/bin/signoff").exists() else None

    server = "a server and a worker, one process each"
    return [
        System(
            name="signoff",
            title="Signoff",
            keeps=f"rows in PostgreSQL, wake-ups by RabbitMQ; {server}; enqueued over HTTP",
            version=version,
            start=with_services,
        ),
        System(
            name="signoff-sqlite",
            title="Signoff, one SQLite file",
            keeps=f"rows in a file, each synced to disk; {server}; enqueued over HTTP",
            version=version,
            start=with_a_file,
        ),
    ]


PEERS = (
    System(
        name="celery",
        title="Celery",
        keeps="messages in RabbitMQ, results in Redis; prefork of 2 processes, acknowledged late",
        version=python_version("queues", "celery"),
        start=with_redis(
            "celery_app.py",
            "celery -A celery_app worker -P prefork -c 2 -l WARNING"
            " --without-gossip --without-mingle --without-heartbeat",
        ),
    ),
    System(
        name="dramatiq",
        title="Dramatiq",
        keeps="messages in RabbitMQ, results in Redis; 2 processes of 8 threads",
        version=python_version("queues", "dramatiq"),
        start=with_redis("dramatiq_app.py", "dramatiq dramatiq_app --processes 2 --threads 8"),
    ),
    System(
        name="taskiq",
        title="Taskiq",
        keeps="messages in RabbitMQ, results in Redis, for which a caller polls each 2 ms; 2 processes",
        version=python_version("queues", "taskiq"),
        start=with_redis("taskiq_app.py", "taskiq worker --workers 2 --log-level WARNING taskiq_app:broker"),
    ),
    System(
        name="awa",
        title="Awa",
        keeps="rows in PostgreSQL, for whose end a caller polls each 2 ms; no answers; one process",
        version=python_version("queues", "awa-pg"),
        start=start_awa,
    ),
)
