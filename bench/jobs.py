"""Rates and latency of queued jobs, of one checkout, with the embedded database.

Run as `python bench/jobs.py ROOT [--jobs N]`. ROOT is a checkout of which `make setup` has run. It starts `signoff
serve --no-work` and `signoff work` on one SQLite file, and measures with the echo model:

- latency: one job after another, from the request until its answer, with `?wait=`;
- steady: jobs that are enqueued while the worker runs, until all are done;
- backlog: jobs that were there before the worker was started.
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
from collections.abc import Iterator
from pathlib import Path

CONNECTIONS = 32
LATENCY_JOBS = 200


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
def running(root: Path, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of the checkout in `folder` for the duration of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
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


def count_done(folder: Path) -> int:
    """Return the number of jobs that have succeeded."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/data/signoff.db?mode=ro", uri=True)) as conn:
        return conn.execute("SELECT count(*) FROM jobs WHERE status = 'success'").fetchone()[0]


def wait_for(folder: Path, count: int) -> None:
    """Wait until `count` jobs have succeeded."""
    while count_done(folder) < count:
        time.sleep(0.05)


async def latencies(port: int, token: str) -> list[float]:
    """Return the seconds from the request of a job until its answer, of one job after another."""
    connection, seconds = await connect(port, token), list[float]()
    for number in range(LATENCY_JOBS):
        began = time.perf_counter()
        job = await connection.ask("POST", "/api/jobs", payload_of(f"latency {number}"))
        answer = await connection.ask("GET", f"/api/jobs/{job['job_id']}?wait=30")
        if answer["status"] != "success":
            raise SystemExit(f"A job ended as {answer}.")
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return sorted(seconds)


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    root, count = options.root.resolve(), options.jobs
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name:
        folder = Path(name)
        with running(root, folder, "serve", "--no-work", "--port", "0") as server:
            port, token = address_of(server)
            with running(root, folder, "work"):
                seconds = asyncio.run(latencies(port, token))
                p50, p99 = statistics.median(seconds), seconds[int(len(seconds) * 0.99)]
                print(f"latency   p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
                before, began = count_done(folder), time.perf_counter()
                asyncio.run(enqueue(port, token, count))
                enqueued = time.perf_counter() - began
                wait_for(folder, before + count)
                elapsed = time.perf_counter() - began
                print(f"steady    {count / elapsed:.0f} jobs/s (enqueued at {count / enqueued:.0f}/s)")
            before, began = count_done(folder), time.perf_counter()
            asyncio.run(enqueue(port, token, count))
            print(f"enqueue   {count / (time.perf_counter() - began):.0f} jobs/s, without a worker")
            with running(root, folder, "work"):
                while count_done(folder) == before:
                    time.sleep(0.01)
                began, before_drain = time.perf_counter(), count_done(folder)
                wait_for(folder, before + count)
                elapsed = time.perf_counter() - began
                print(f"backlog   {(before + count - before_drain) / elapsed:.0f} jobs/s")


if __name__ == "__main__":
    main()
