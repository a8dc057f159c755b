"""Rates and latency of queued jobs, of one checkout.

Run as `.venv/bin/python bench/jobs.py ROOT [--jobs N] [--rounds N] [--database URL --amqp URL] [--out FILE]`. ROOT is a
checkout of which `make setup` has run. The URLs are those of an empty PostgreSQL database and of RabbitMQ; without
them, the embedded database is measured. The program runs `signoff serve --no-work` and `signoff work` on default
settings, and measures with the echo model:

- latency: one job after another, from the request until its answer, with `?wait=`;
- steady: jobs that are enqueued while the worker runs, until all are done;
- backlog: jobs that were enqueued before the worker was started, in rounds that alternate with the steady ones.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import asyncpg

from result import Result

CONNECTIONS = 32
LATENCY_JOBS = 200
MAX_LATENCY_MS = 15  # on SQLite
# The rate at which a backlog is performed, as a share of that of jobs that come one by one.
LOWEST_SHARE = 0.8


class Connection:
    """HTTP connection for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader = reader
        self._writer = writer
        self._token = token

    async def ask(self, method: str, path: str, payload: object = None) -> dict[str, object]:
        """Send a request, and return the JSON of its answer."""
        body = b"" if payload is None else json.dumps(payload).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._token}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"content-length: *(\d+)", answer, re.IGNORECASE)[1])
        content = json.loads(await self._reader.readexactly(size))
        if answer.split(b" ", 2)[1] not in {b"200", b"201", b"202"}:
            raise SystemExit(f"{method} {path}: {answer!r} {content}")
        return content


@contextlib.contextmanager
def running(
    root: Path, folder: Path, settings: Mapping[str, str], *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of the checkout in `folder` for the duration of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")} | settings
    command = [str(root / ".venv/bin/signoff"), *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def address_of(server: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Return the port and the token that the server prints."""
    text = b""
    while not (match := re.search(rb"http://127\.0\.0\.1:(\d+)\n[\s\S]*Token: (\S+)", text)):
        text += os.read(server.stdout.fileno(), 65536)
    return int(match[1]), match[2].decode()


async def connect(port: int, token: str) -> Connection:
    """Return a connection, as soon as the server answers."""
    for _ in range(200):
        with contextlib.suppress(ConnectionError):
            return Connection(*await asyncio.open_connection("127.0.0.1", port), token)
        await asyncio.sleep(0.05)
    raise SystemExit("The server does not answer.")


def payload_of(text: str) -> dict[str, object]:
    """Return the body of a request for a job."""
    return {"target": "echo", "body": {"messages": [{"role": "user", "content": text}]}}


async def enqueue(port: int, token: str, count: int) -> None:
    """Enqueue `count` jobs over several connections."""
    numbers = iter(range(count))

    async def work() -> None:
        connection = await connect(port, token)
        for number in numbers:
            await connection.ask("POST", "/api/jobs", payload_of(f"job {number}"))

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


@contextlib.contextmanager
def counting(folder: Path, url: str | None) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of jobs that have succeeded."""
    query = "SELECT count(*) FROM jobs WHERE status = 'success'"
    if url is None:
        address = f"file:{folder}/data/signoff.db?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, isolation_level=None)) as conn:
            yield lambda: conn.execute(query).fetchone()[0]
        return
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        yield lambda: runner.run(connection.fetchval(query))
        runner.run(connection.close())


def wait_for(count_done: Callable[[], int], count: int) -> None:
    """Wait until `count` jobs have succeeded."""
    while count_done() < count:
        time.sleep(0.05)


async def latencies(port: int, token: str) -> tuple[list[float], list[float]]:
    """Return the seconds until a job is accepted, and until its answer is there, of one job after another."""
    connection, accepted, answered = await connect(port, token), list[float](), list[float]()
    for number in range(LATENCY_JOBS):
        began = time.perf_counter()
        job = await connection.ask("POST", "/api/jobs", payload_of(f"latency {number}"))
        accepted.append(time.perf_counter() - began)
        answer = await connection.ask("GET", f"/api/jobs/{job['job_id']}?wait=30")
        if answer["status"] != "success":
            raise SystemExit(f"A job ended as {answer}.")
        answered.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return sorted(accepted), sorted(answered)


def measure(root: Path, folder: Path, settings: Mapping[str, str], options: argparse.Namespace, result: Result) -> None:
    """Add the figures to `result`."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(root, folder, settings, "serve", "--no-work", "--port", "0"))
        port, token = address_of(server)
        count_done = stack.enter_context(counting(folder, settings.get("SIGNOFF_DATABASE_URL")))
        asyncio.run(enqueue(port, token, 1))
        rates, count = {"steady": list[float](), "accepted": list[float](), "backlog": list[float]()}, options.jobs
        for number in range(options.rounds):
            with running(root, folder, settings, "work"):
                wait_for(count_done, count_done() + (number == 0))
                if number == 0:
                    max_ms = None if settings else MAX_LATENCY_MS
                    add_latency(*asyncio.run(latencies(port, token)), max_ms, result)
                before, began = count_done(), time.perf_counter()
                asyncio.run(enqueue(port, token, count))
                wait_for(count_done, before + count)
                rates["steady"].append(count / (time.perf_counter() - began))
            before, began = count_done(), time.perf_counter()
            asyncio.run(enqueue(port, token, count))
            rates["accepted"].append(count / (time.perf_counter() - began))
            with running(root, folder, settings, "work"):
                while (first := count_done()) == before:
                    time.sleep(0.01)
                began = time.perf_counter()
                wait_for(count_done, before + count)
                rates["backlog"].append((before + count - first) / (time.perf_counter() - began))
    steady, accepted, backlog = (statistics.median(each) for each in rates.values())
    result.add("jobs that come while the worker runs", f"{steady:.0f}/s", "", "")
    result.add("acceptance without a worker", f"{accepted:.0f}/s", "", "")
    holds = "yes" if backlog >= LOWEST_SHARE * steady else "NO"
    result.add(
        "backlog", f"{backlog:.0f}/s, {backlog / steady:.2f} of the first rate", f"≥ {LOWEST_SHARE} of it", holds
    )


def add_latency(accepted: list[float], answered: list[float], max_ms: float | None, result: Result) -> None:
    """Add the latency of single jobs to `result`."""
    p10_ms, p50_ms, p99_ms = (answered[int(len(answered) * share)] * 1000 for share in (0.1, 0.5, 0.99))
    accepted_ms = statistics.median(accepted) * 1000
    figure = f"{p50_ms:.1f} ms (p10 {p10_ms:.1f}, p99 {p99_ms:.1f}; accepted after {accepted_ms:.1f})"
    bound = ("", "") if max_ms is None else (f"≤ {max_ms} ms", "yes" if p50_ms <= max_ms else "NO")
    result.add("enqueue → answer, p50", figure, *bound)


def main() -> None:
    """Measure, and print a row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", help="URL of an empty PostgreSQL database")
    parser.add_argument("--amqp", help="URL of a RabbitMQ")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    root = options.root.resolve()
    urls = {"SIGNOFF_DATABASE_URL": options.database, "SIGNOFF_AMQP_URL": options.amqp}
    settings = {name: url for name, url in urls.items() if url is not None}
    place = "PostgreSQL and RabbitMQ" if settings else "SQLite"
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name:
        if options.database is not None:
            subprocess.run([root / ".venv/bin/signoff", "migrate"], env=os.environ | settings, check=True)
        result = Result(f"{options.jobs:,} jobs on {place}", "measured", "bound", "holds")
        measure(root, Path(name), settings, options, result)
        result.save(options.out)


if __name__ == "__main__":
    main()
