"""Time of the next review among many held answers, through the store and over HTTP.

Run as `.venv/bin/python bench/reviews.py sqlite|postgresql [--held N] [--reviewers N] [--takes N] [--out FILE]`. It
inserts N held answers in ten queues, in an embedded database in a temporary folder, or in a PostgreSQL server that it
starts. Reviewers then take one answer after another at the same time, without a pause, each from all queues, and decide
on it: first through the store, then over HTTP from a server process. It prints percentiles in milliseconds, and those
of an empty write transaction in the same minute: what the machine and its disk take at least. In `next, others held`,
nobody decides, so that all that was taken stays open.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from result import Result
from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.reviews.policy import JobPolicy
from signoff.core.reviews.queues import ReviewFilter, ReviewQueue, rank_of
from signoff.infra.memory import collect_seldom
from signoff.server.bootstrap import migrate, open_services
from signoff.settings import Settings
from signoff.stores.schema import jobs
from signoff.work.admin.people import create_token
from signoff.work.reviews.desk import VerdictRequest, decide_on_desk
from signoff.work.reviews.history import list_held
from signoff.work.reviews.leases import take_next
from signoff.work.services import Services
from support import service_supervisor

LIMITS_MS = {"store: next": 10, "store: next, others held": 10}
ROOT = Path(__file__).parent.parent
QUEUES = 10
MEMBERS = 100
BATCH = 2000
PAGES = 100
BODY = b'{"model":"echo","messages":[{"role":"user","content":"Hello"}]}'
ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"Hello yourself"}}]}'


def held_row(number: int, now: int) -> dict[str, object]:
    """Return a held job of one of ten queues, with some of the priorities and deadlines."""
    return {
        "id": f"job-{number:09d}",
        "status": "human",
        "door": "jobs",
        "lane": "later",
        "user_id": 1 + number % 50,
        "token_id": 1,
        "target": "echo",
        "model": "echo",
        "path": "/v1/chat/completions",
        "body": BODY,
        "response": ANSWER,
        "metadata": b"null",
        "priority": 5,
        "policy": JobPolicy(),
        "deliver": (),
        "attempt": 1,
        "max_attempts": 5,
        "round": 1,
        "seq": 3,
        "due_at": now,
        "created_at": now,
        "updated_at": now,
        "held_at": now,
        "review_queue": f"queue{number % QUEUES}" if number % QUEUES else None,
        "review_priority": 4 + number % 3,
        "review_deadline": now + number * 1_000_000 if number % 2 else None,
    }


async def fill(services: Services, held: int) -> None:
    """Insert held answers."""
    database, now = services.store._database, services.clock()  # type: ignore[attr-defined]
    for start in range(0, held, BATCH):
        rows = [held_row(number, now) for number in range(start, min(start + BATCH, held))]
        await database.write(lambda tx, rows=rows: tx.conn.execute(sa.insert(jobs), rows).rowcount)
    await database.write(lambda tx: tx.conn.execute(sa.text("ANALYZE")).rowcount)
    members = tuple(sorted(f"reviewer{number}@example.com" for number in range(MEMBERS)))
    for number in range(1, QUEUES):
        await services.store.review_queues.put(ReviewQueue(name=f"queue{number}", members=members))


async def timed(times: list[float], call: Callable[[], Awaitable[object]]) -> object:
    """Add the duration of a call in milliseconds to `times`, and return its result."""
    start = time.perf_counter()
    result = await call()
    times.append((time.perf_counter() - start) * 1000)
    return result


async def write_nothing(services: Services, writers: int, writes: int) -> list[float]:
    """Let writers commit empty transactions at the same time, which the store groups as it does with others."""
    times, database = list[float](), services.store._database  # type: ignore[attr-defined]
    update = sa.text("UPDATE review_reasons SET reason = reason WHERE position = -1")

    async def write() -> None:
        for _ in range(writes):
            await timed(times, lambda: database.write(lambda tx: tx.conn.execute(update).rowcount))

    await asyncio.gather(*(write() for _ in range(writers)))
    return times


async def review_all(services: Services, reviewers: int, takes: int, *, decide: bool) -> dict[str, list[float]]:
    """Let reviewers take answers at the same time, and decide; no two may get the same one."""
    times, taken = {"next": list[float](), "decide": list[float]()}, list[str]()

    async def review(number: int) -> None:
        caller = Caller(user_id=1000 + number, token_id=1, role="reviewer", email=f"reviewer{number}@example.com")
        for _ in range(takes):
            job = await timed(times["next"], lambda: take_next(services, caller, None, []))
            assert isinstance(job, Job)
            taken.append(job.id)
            if decide:
                verdict = VerdictRequest(verdict="approve", round=job.round)
                await timed(
                    times["decide"], lambda job=job, verdict=verdict: decide_on_desk(services, caller, job.id, verdict)
                )

    await asyncio.gather(*(review(number) for number in range(reviewers)))
    assert len(set(taken)) == len(taken), "two reviewers have the same answer"
    return times


class Connection:
    """HTTP connection of a reviewer, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer, self._token = reader, writer, token

    async def post(self, path: str, payload: object) -> dict[str, object]:
        """Send a request, and return the JSON of its answer."""
        body = json.dumps(payload)
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._token}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(f"{head}{body}".encode())
        answer = await self._reader.readuntil(b"\r\n\r\n")
        match = re.search(rb"content-length: *(\d+)", answer, re.IGNORECASE)
        assert match is not None
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return json.loads(await self._reader.readexactly(int(match[1])))


async def review_over_http(port: int, tokens: list[str], takes: int) -> dict[str, list[float]]:
    """Let reviewers take answers and decide on them over HTTP."""
    times = {"next": list[float](), "decide": list[float]()}

    async def review(token: str) -> None:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port), token)
        for _ in range(takes):
            item = await timed(times["next"], lambda: connection.post("/api/reviews/next", {}))
            assert isinstance(item, dict)
            path = f"/api/reviews/{item['job_id']}/decide"
            body = {"verdict": "approve", "round": item["round"]}
            await timed(times["decide"], lambda path=path, body=body: connection.post(path, body))

    await asyncio.gather(*map(review, tokens))
    return times


async def tokens_of(services: Services, reviewers: int) -> list[str]:
    """Create reviewers, and return a token of each."""
    people = services.store.people
    users = [await people.put_user(f"reviewer{number}@example.com", "reviewer") for number in range(reviewers)]
    return [await create_token(services, user) for user in users]


@contextlib.contextmanager
def serving(folder: Path, url: str | None) -> Iterator[int]:
    """Serve the database, and yield the port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
    environment |= {"SIGNOFF_DATA_DIR": str(folder / "data")} | ({} if url is None else {"SIGNOFF_DATABASE_URL": url})
    command = [ROOT / ".venv/bin/signoff", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
        try:
            text = b""
            while not (match := re.search(rb"http://127\.0\.0\.1:(\d+)", text)):
                assert process.stdout is not None
                part = os.read(process.stdout.fileno(), 65536)
                assert part, text
                text += part
            yield int(match[1])
        finally:
            process.terminate()


async def read_pages(services: Services) -> list[float]:
    """Read pages from the middle of the list."""
    caller = Caller(user_id=1, token_id=1, role="admin", email="ada@example.com")
    middle = rank_of(Job(**held_row(4, 0))), "job-000050000"
    times = list[float]()
    for _ in range(PAGES):
        filters = ReviewFilter(queues=(), after=middle, limit=50)
        await timed(times, lambda filters=filters: list_held(services, caller, None, filters))
    return times


def percentiles(times: list[float]) -> list[str]:
    """Return p50, p95 and p99 of some durations in milliseconds, and the longest."""
    ordered = sorted(times)
    places = [min(len(ordered) - 1, int(len(ordered) * share)) for share in (0.5, 0.95, 0.99, 1.0)]
    return [f"{ordered[place]:.1f}" for place in places]


async def measure(folder: Path, url: str | None, options: argparse.Namespace, result: Result) -> None:
    """Add the figures of one database to the result."""
    settings = Settings(data_dir=folder / "data", database_url=url)
    if url is not None:
        await migrate(settings)
    reviewers, takes = options.reviewers, options.takes

    def add(name: str, times: list[float]) -> None:
        figures = percentiles(times)
        bound = LIMITS_MS.get(name)
        holds = "" if bound is None else "yes" if float(figures[2]) <= bound else "NO"
        result.add(name, *figures, "" if bound is None else f"p99 ≤ {bound:g}", holds)

    async with open_services(settings) as services:
        await fill(services, options.held)
        tokens = await tokens_of(services, reviewers)
        await review_all(services, reviewers, 10, decide=True)  # statements are compiled at their first use
        collect_seldom()  # as a server does
        add("empty write transaction", await write_nothing(services, reviewers, takes))
        for name, times in (await review_all(services, reviewers, takes, decide=True)).items():
            add(f"store: {name}", times)
        add("store: next, others held", (await review_all(services, reviewers, takes, decide=False))["next"])
        add("store: page of 50", await read_pages(services))
        add("empty write transaction, again", await write_nothing(services, reviewers, takes))
    with serving(folder, url) as port:
        await review_over_http(port, tokens, 10)
        for name, times in (await review_over_http(port, tokens, takes)).items():
            add(f"http: {name}", times)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Serve PostgreSQL from a new cluster that waits for its disk."""
    binary = service_supervisor.postgres_binary()
    assert binary is not None, "PostgreSQL is not installed"
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as folder:
        cluster, [port] = service_supervisor.empty(Path(folder, "postgres")), service_supervisor.free_ports(1)
        Path(folder).chmod(0o755)
        service_supervisor.make_cluster(binary, cluster)
        safe = ("fsync=on", "full_page_writes=on", "shared_buffers=512MB")
        with service_supervisor.postgres_at(binary, cluster, port, *safe):
            yield f"postgresql://postgres@{service_supervisor.LOCALHOST}:{port}/postgres"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", choices=["sqlite", "postgresql"])
    parser.add_argument("--held", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=8)
    parser.add_argument("--takes", type=int, default=200)
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    title = f"{options.held:,} held, {options.reviewers} reviewers, {options.database}"
    result = Result(title, "p50 ms", "p95 ms", "p99 ms", "longest ms", "bound", "holds")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signoff-bench-")))
        url = stack.enter_context(postgresql()) if options.database == "postgresql" else None
        asyncio.run(measure(folder, url, options, result))
    result.save(options.out)


if __name__ == "__main__":
    main()
