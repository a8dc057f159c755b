"""Adapter of Signoff for a public harness of job queues on PostgreSQL, hardbyte/postgresql-job-queue-benchmarking.

The harness starts this program once for each replica, kills it, and takes PostgreSQL away from it. It talks with the
program as its `CONTRIBUTING_ADAPTERS.md` says: environment variables in, lines of JSON on stdout, and `ENQUEUE n` on
stdin. `docs/performance.md` has the steps to run it. A replica is one `signoff serve` with its own worker, on the
database of the harness and without any other service, and everything goes through its HTTP API:

- `POST /api/jobs` for each job, with the echo model, which waits for JOB_WORK_MS;
- `GET /metrics` for the jobs that are done, and for those that wait;
- `GET /api/jobs` for the time from the submission of the latest jobs to their claim.
"""

import asyncio
import base64
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from process_tree import ProcessTree
from result import ROOT, commit

PROGRAM = ROOT / ".venv/bin/signoff"
SYSTEM = "signoff"
# What the harness watches for dead rows.
OBJECTS = {"event_tables": ["public.jobs", "public.events"], "event_indexes": [], "extensions": []}
# All replicas of a run share it, and the database of the harness has nothing to keep secret.
SECRET_KEY = base64.b64encode(b"a key for benchmarks; not secret").decode()
CONNECTIONS = 16
WINDOW_SECONDS = 30.0
POLL_SECONDS = 0.5
LATEST_JOBS = 100
MAX_LATENCIES = 32_768
MAX_PENDING = 4 * CONNECTIONS
DONE = re.compile(r'^signoff_attempts_total\{[^}]*lane="later"[^}]*outcome="success"[^}]*\} (\S+)', re.MULTILINE)
ACCEPTED = 202
WAITING = re.compile(r"^signoff_queue_jobs\{[^}]*\} (\S+)", re.MULTILINE)


class Options:
    """Options of the harness, from its environment variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.database_url = environment["DATABASE_URL"]
        self.instance = int(environment.get("BENCH_INSTANCE_ID", "0"))
        """Number of the replica; the first one reports what concerns all."""
        self.is_paced = environment.get("PRODUCER_PACING", "harness") == "harness"
        """The harness says on stdin when to enqueue how many jobs."""
        self.target_depth = (
            int(environment.get("TARGET_DEPTH", "1000")) if environment.get("PRODUCER_MODE") == "depth-target" else None
        )
        """Number of waiting jobs to keep up; None for a fixed rate."""
        self.rate = float(environment.get("PRODUCER_RATE", "800"))
        """Jobs per second."""
        self.rate_file = environment.get("PRODUCER_RATE_CONTROL_FILE")
        """File with the rate that applies now; None for a rate that does not change."""
        self.batch_max = int(environment.get("PRODUCER_BATCH_MAX", "128"))
        self.batch_seconds = int(environment.get("PRODUCER_BATCH_MS", "25")) / 1000
        self.workers = int(environment.get("WORKER_COUNT", "32"))
        self.payload_bytes = int(environment.get("JOB_PAYLOAD_BYTES", "256"))
        self.work_seconds = int(environment.get("JOB_WORK_MS", "1")) / 1000
        self.sample_seconds = int(environment.get("SAMPLE_EVERY_S", "5"))

    def current_rate(self) -> float:
        """Return the rate that the harness asks for now."""
        try:
            return float(Path(self.rate_file or "").read_text())
        except (OSError, ValueError):
            return self.rate


class Replica:
    """A `signoff serve` with its worker, and what the harness wants to know of it."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.accepted, self.done, self.waiting = 0, 0.0, 0.0
        """Jobs that this replica has accepted and done, and jobs that wait in the database."""
        self._latencies = deque[tuple[float, float]](maxlen=MAX_LATENCIES)
        self._seen = deque[str](maxlen=4 * LATEST_JOBS)
        wait = f"echo/delay={options.work_seconds}"
        body = {"model": wait, "messages": [{"role": "user", "content": "x" * options.payload_bytes}]}
        self._job = {"path": "/v1/chat/completions", "target": wait, "body": body}
        settings = {
            "SIGNOFF_DATABASE_URL": options.database_url.replace("postgres://", "postgresql://", 1),
            "SIGNOFF_SECRET_KEY": SECRET_KEY,
            "SIGNOFF_CONCURRENCY": str(options.workers),
            "SIGNOFF_MODEL_SHARE": "1",
            "SIGNOFF_USER_SHARE": "1",
            "SIGNOFF_ECHO_FAULTS": "true",
        }
        email = f"replica{options.instance}@example.com"
        run(folder, settings, "migrate")
        token = run(folder, settings, "token", "create", email, "--role", "admin", "--quiet").strip()
        self.server = ProcessTree([PROGRAM, "serve", "--port", "0"], core=None, folder=folder, settings=settings)
        self._address = self.server.wait_for(rb"(http://127\.0\.0\.1:\d+)")[1].decode()
        self._headers = {"authorization": f"Bearer {token}"}

    async def connect(self) -> None:
        """Open the client of the server; call it on the event loop."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self._http = aiohttp.ClientSession(self._address, connector=connector, headers=self._headers)

    async def enqueue(self, count: int) -> None:
        """Submit jobs; those that the server refuses are lost, as they are with the other adapters."""
        await asyncio.gather(*(self._submit() for _ in range(count)))

    async def _submit(self) -> None:
        async with self._http.post("/api/jobs", json=self._job) as response:
            if response.status == ACCEPTED:
                self.accepted += 1
            else:
                log(f"not accepted: {response.status} {await response.text()}")

    async def look(self) -> None:
        """Read the counts, and how long the latest jobs waited."""
        async with self._http.get("/metrics") as response:
            text = await response.text()
        self.done = sum(map(float, DONE.findall(text)))
        self.waiting = sum(map(float, WAITING.findall(text)))
        async with self._http.get("/api/jobs", params={"status": "success", "limit": LATEST_JOBS}) as response:
            jobs = (await response.json())["data"]
        now = time.monotonic()
        new = [job for job in jobs if job["job_id"] not in self._seen]
        self._latencies += [(now, job["seconds"]["queued"] * 1000) for job in new]
        self._seen += [job["job_id"] for job in new]

    async def close(self) -> None:
        """Close the client."""
        await self._http.close()

    def claim_ms(self) -> tuple[float, float, float]:
        """Return the median, the 95th and the 99th percentile of the waits of the last WINDOW_SECONDS."""
        oldest = time.monotonic() - WINDOW_SECONDS
        waits = [wait for seen_at, wait in self._latencies if seen_at >= oldest]
        if len(waits) < 2:
            return 0.0, 0.0, 0.0
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        return cuts[49], cuts[94], cuts[98]


def run(folder: Path, settings: Mapping[str, str], *words: str) -> str:
    """Run a command of Signoff to its end, and return what it printed."""
    environment = {"PATH": "/usr/bin:/bin", **settings}
    done = subprocess.run([PROGRAM, *words], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


async def produce(replica: Replica, options: Options) -> None:
    """Enqueue jobs as the harness asks. Never returns."""
    counts = tokens() if options.is_paced and options.target_depth is None else own_pace(replica, options)
    pending = set[asyncio.Task[None]]()
    async for count in counts:
        pending.add(asyncio.create_task(attempt(replica.enqueue(count))))
        while len(pending) > MAX_PENDING:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


async def tokens() -> AsyncIterator[int]:
    """Yield the counts that the harness writes to stdin."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        word, _, count = line.decode().partition(" ")
        if word == "ENQUEUE":
            yield int(count)
    await asyncio.Event().wait()


async def own_pace(replica: Replica, options: Options) -> AsyncIterator[int]:
    """Yield counts by the time that has passed, or what the queue lacks."""
    credit, last = 0.0, time.monotonic()
    while True:
        await asyncio.sleep(options.batch_seconds)
        now = time.monotonic()
        if options.target_depth is None:
            credit += options.current_rate() * (now - last)
        else:
            credit = max(0.0, options.target_depth - replica.waiting)
        last, count = now, min(options.batch_max, int(credit))
        credit -= count
        if count:
            yield count


async def poll(replica: Replica) -> None:
    """Look at the server again and again. Never returns."""
    while True:
        await attempt(replica.look())
        await asyncio.sleep(POLL_SECONDS)


async def attempt(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; an error of the connection is logged only, as the database may be gone at this moment."""
    try:
        await work
    except (aiohttp.ClientError, KeyError, TimeoutError, ValueError) as error:
        log(repr(error))


async def report(replica: Replica, options: Options) -> None:
    """Print the samples at each multiple of `sample_seconds` of the clock. Never returns."""
    accepted, done, last = replica.accepted, replica.done, time.monotonic()
    while True:
        await asyncio.sleep(options.sample_seconds - time.time() % options.sample_seconds)
        now = time.monotonic()
        seconds, last = now - last, now
        p50, p95, p99 = replica.claim_ms()
        samples = [
            ("claim_p50_ms", p50, WINDOW_SECONDS),
            ("claim_p95_ms", p95, WINDOW_SECONDS),
            ("claim_p99_ms", p99, WINDOW_SECONDS),
            ("enqueue_rate", (replica.accepted - accepted) / seconds, options.sample_seconds),
            ("completion_rate", (replica.done - done) / seconds, options.sample_seconds),
        ]
        accepted, done = replica.accepted, replica.done
        if options.instance == 0:
            rate = options.current_rate() if options.target_depth is None else 0.0
            samples += [("queue_depth", replica.waiting, 0), ("producer_target_rate", rate, 0)]
        for metric, value, window in samples:
            sample = {"kind": "adapter", "subject_kind": "adapter", "subject": "", "metric": metric, "value": value}
            emit({"t": now_text(), "system": SYSTEM, **sample, "window_s": window}, options)


def descriptor(options: Options) -> dict[str, object]:
    """Return what the harness keeps of this adapter."""
    name = urlsplit(options.database_url).path.strip("/")
    version = {"version": commit(ROOT), "schema_version": "current", "db_name": name}
    return {"kind": "descriptor", "system": SYSTEM, **OBJECTS, **version, "started_at": now_text()}


def emit(record: Mapping[str, object], options: Options) -> None:
    """Print a record for the harness."""
    print(json.dumps({**record, "instance_id": options.instance}), flush=True)


def log(text: str) -> None:
    """Print a line for people."""
    print(f"[{SYSTEM}] {text[:500]}", file=sys.stderr, flush=True)


def now_text() -> str:
    """Return the time in the format of the harness."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def measure(replica: Replica, options: Options) -> None:
    """Produce, poll and report until SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await replica.connect()
    emit(descriptor(options), options)
    work = (produce(replica, options), poll(replica), report(replica, options))
    tasks = [asyncio.create_task(each) for each in (*work, stopped.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await replica.close()
    if not stopped.is_set():
        raise SystemExit("The adapter has failed: " + "; ".join(repr(task.exception()) for task in done))


def main() -> None:
    """Run one replica; with `--manifest`, print the file `adapter.json` of the harness instead."""
    if sys.argv[1:] == ["--manifest"]:
        print(json.dumps({"system": SYSTEM, "db_name": f"{SYSTEM}_bench", **OBJECTS}, indent=2))
        return
    options = Options(os.environ)
    with tempfile.TemporaryDirectory(prefix="signoff-chaos-") as name:
        replica = Replica(options, Path(name))
        try:
            asyncio.run(measure(replica, options))
        finally:
            replica.server.close()


if __name__ == "__main__":
    main()
