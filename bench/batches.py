"""Batches of several owners at once: fairness between them, and what others wait for meanwhile.

Run as `PYTHONPATH=tests .venv/bin/python bench/batches.py ROOT [--lines N] [--batches N] [--owners N] [--servers N]
[--workers N] [--out FILE]`. ROOT is a checkout of which `make setup` has run. PostgreSQL, which writes to disk before
it confirms, and RabbitMQ are started, and all processes share all cores. Each owner uploads the same number of batches
for the echo model. The program measures:

- how many lines of each owner are done when the first owner has no line left;
- how long a batch of 100 lines takes that a new owner sends when half of all lines are done;
- how long a waiting call takes before the batches, and beside them;
- how the memory of each process grows from a fifth of the lines to their end.

In the end, each batch must have exactly one result for each of its lines.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from process_tree import ProcessTree
from queue_services import query, services
from result import Result

POLL_SECONDS = 1.0
CALL_PAUSE_SECONDS = 0.05
BASELINE_CALLS = 200
NEW_LINES = 100
MAX_SPREAD = 0.2
MAX_NEW_SECONDS = 10
MAX_SLOWDOWN = 1.5
MAX_GROWTH = 1.1


class Owner:
    """A user who sends batches to one of the servers."""

    def __init__(self, http: aiohttp.ClientSession, address: str, token: str) -> None:
        self.batches = list[str]()
        self.lines = 0
        self._http = http
        self._address = address
        self._headers = {"authorization": f"Bearer {token}"}

    async def send(self, lines: int) -> None:
        """Upload a file of `lines` requests, and create a batch of it."""
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", "".join(map(_line, range(lines))), filename="lines.jsonl")
        file = await self._ask("POST", "/v1/files", data=form)
        new = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        self.batches.append((await self._ask("POST", "/v1/batches", json=new))["id"])
        self.lines += lines

    async def count_done(self) -> int:
        """Return the number of lines that have an answer."""
        found = [await self._ask("GET", f"/v1/batches/{batch}") for batch in self.batches]
        if failed := [batch for batch in found if batch["status"] in {"failed", "expired", "cancelled"}]:
            raise SystemExit(f"A batch has ended without its answers: {failed[0]}")
        return sum(batch["request_counts"]["completed"] for batch in found)

    async def check_results(self) -> None:
        """Wait until all batches have ended; raise SystemExit unless each line has exactly one result."""
        for batch_id in self.batches:
            while (batch := await self._ask("GET", f"/v1/batches/{batch_id}"))["status"] != "completed":
                await asyncio.sleep(POLL_SECONDS)
            async with self._http.get(
                f"{self._address}/v1/files/{batch['output_file_id']}/content", headers=self._headers
            ) as response:
                ids = Counter([json.loads(line)["custom_id"] async for line in response.content])
            if ids != Counter(f"line-{number}" for number in range(batch["request_counts"]["total"])):
                raise SystemExit(f"The results of the batch {batch_id} are not those of its lines.")

    async def call(self) -> float:
        """Return the seconds that a waiting call took."""
        began = time.perf_counter()
        body = {"model": "echo", "messages": [{"role": "user", "content": f"at {began}"}]}
        await self._ask("POST", "/v1/chat/completions", json=body)
        return time.perf_counter() - began

    async def _ask(self, method: str, path: str, **more: object) -> dict[str, object]:
        async with self._http.request(method, self._address + path, headers=self._headers, **more) as response:
            content = await response.json()
            if response.status >= 300:
                raise SystemExit(f"{method} {path}: {response.status} {content}")
            return content


def _line(number: int) -> str:
    body = {"model": "echo", "messages": [{"role": "user", "content": f"line {number}"}]}
    request = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request) + "\n"


class Deployment:
    """Servers and workers of a checkout on one database."""

    def __init__(self, root: Path, folder: Path, postgres: str, amqp: str, stack: contextlib.ExitStack) -> None:
        query(f"{postgres}/postgres", "CREATE DATABASE batches")
        self.settings = {"SIGNOFF_DATABASE_URL": f"{postgres}/batches", "SIGNOFF_AMQP_URL": amqp}
        self.processes = dict[str, ProcessTree]()
        self._program = root / ".venv/bin/signoff"
        self._folder = folder
        self._stack = stack
        self._run("migrate")

    def start(self, name: str, *arguments: str) -> ProcessTree:
        """Start a process, which ends with the stack."""
        command = [self._program, *arguments]
        process = ProcessTree(command, core=None, folder=self._folder, settings=self.settings, output=name)
        self._stack.callback(process.close)
        self.processes[name] = process
        return process

    def start_server(self, name: str) -> str:
        """Start a server, and return its address once it answers."""
        return self.start(name, "serve", "--no-work", "--port", "0").wait_for(rb"(http://127\.0\.0\.1:\d+)")[1].decode()

    def new_token(self, email: str) -> str:
        """Return a token of a new user."""
        return self._run("token", "create", email, "--role", "user", "--quiet").strip()

    def memory_mb(self) -> dict[str, float]:
        """Return the memory of each process."""
        return {name: process.memory_mb() for name, process in self.processes.items()}

    def _run(self, *arguments: str) -> str:
        environment = {"PATH": "/usr/bin:/bin"} | self.settings
        command = [self._program, *arguments]
        run = subprocess.run(command, cwd=self._folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return run.stdout


async def call_repeatedly(owner: Owner, seconds: list[float]) -> None:
    """Call the echo model every CALL_PAUSE_SECONDS, until cancelled, and record the time of each call."""
    while True:
        seconds.append(await owner.call())
        await asyncio.sleep(CALL_PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def calling(owner: Owner) -> AsyncIterator[list[float]]:
    """Yield the seconds of the calls that are made during the block."""
    seconds = list[float]()
    task = asyncio.ensure_future(call_repeatedly(owner, seconds))
    try:
        yield seconds
    finally:
        task.cancel()
        await asyncio.wait([task])


def p99_ms(seconds: Sequence[float]) -> float:
    """Return the 99th percentile in milliseconds."""
    return statistics.quantiles(seconds, n=100)[98] * 1000


async def measure(
    deployment: Deployment, addresses: Sequence[str], options: argparse.Namespace, result: Result
) -> None:
    """Add the figures to `result`."""
    emails = [f"owner{number}@example.com" for number in range(options.owners)]
    tokens = [deployment.new_token(email) for email in (*emails, "new@example.com", "caller@example.com")]
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(None)) as http:
        *owners, new, caller = [
            Owner(http, addresses[number % len(addresses)], token) for number, token in enumerate(tokens)
        ]
        baseline = [await caller.call() for _ in range(BASELINE_CALLS)][BASELINE_CALLS // 10 :]
        each = options.lines // options.batches
        for number in range(options.batches):
            await owners[number % len(owners)].send(each)
        total, began, new_seconds, memory = each * options.batches, time.perf_counter(), 0.0, dict[str, float]()
        async with calling(caller) as seconds:
            while True:
                done = sum(counts := [await owner.count_done() for owner in owners])
                if not memory and done >= total / 5:
                    memory = deployment.memory_mb()
                if not new_seconds and done >= total / 2:
                    new_seconds = await _time_of_new(new)
                if any(count == owner.lines for count, owner in zip(counts, owners, strict=True)):
                    break
                await asyncio.sleep(POLL_SECONDS)
            shares = [count / owner.lines for count, owner in zip(counts, owners, strict=True)]
            rate = done / (time.perf_counter() - began)
            while sum([await owner.count_done() for owner in owners]) < total:
                await asyncio.sleep(POLL_SECONDS)
        growth = max(now / memory[name] for name, now in deployment.memory_mb().items())
        for owner in owners:
            await owner.check_results()
    spread = 1 - min(shares)
    result.add("lines", f"{rate:.0f}/s", "", "")
    _add(result, "owner with the fewest lines, behind the first one", spread, f"{spread:.0%}", MAX_SPREAD, "20 %")
    _add(result, f"{NEW_LINES} lines of a new owner", new_seconds, f"{new_seconds:.1f} s", MAX_NEW_SECONDS, "10 s")
    before, beside = p99_ms(baseline), p99_ms(seconds)
    figure = f"{beside:.0f} ms ({before:.0f} before)"
    _add(result, "waiting call, p99", beside / before, figure, MAX_SLOWDOWN, f"{MAX_SLOWDOWN} × before")
    _add(result, "memory of a process, from a fifth on", growth, f"× {growth:.2f}", MAX_GROWTH, f"× {MAX_GROWTH}")
    result.add("results", f"{total:,}, one for each line", "", "yes")


async def _time_of_new(owner: Owner) -> float:
    """Return the seconds that a small batch of a new owner takes."""
    began = time.perf_counter()
    await owner.send(NEW_LINES)
    while await owner.count_done() < NEW_LINES:
        await asyncio.sleep(0.1)
    return time.perf_counter() - began


def _add(result: Result, name: str, value: float, figure: str, bound: float, bound_text: str) -> None:
    result.add(name, figure, f"≤ {bound_text}", "yes" if value <= bound else "NO")


def main() -> None:
    """Measure, and print a row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--owners", type=int, default=4)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    title = f"{options.lines:,} lines, {options.batches} batches, {options.owners} owners"
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        running = stack.enter_context(services(folder))
        deployment = Deployment(options.root.resolve(), folder, running.postgres, running.amqp, stack)
        addresses = [deployment.start_server(f"server{number}") for number in range(options.servers)]
        for number in range(options.workers):
            deployment.start(f"worker{number}", "work")
        result = Result(title, "measured", "bound", "holds")
        asyncio.run(measure(deployment, addresses, options, result))
        result.save(options.out)


if __name__ == "__main__":
    main()
