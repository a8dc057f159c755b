"""Time of the next review among many held answers.

Run as `.venv/bin/python bench/reviews.py [--held N] [--reviewers N] [--takes N] [--database URL]`. URL is an empty
PostgreSQL database, without which an embedded database in a temporary folder is measured. It inserts N held answers in
ten queues, lets reviewers take one answer after another at the same time, each from all queues, and then reads pages
from the middle of the list. It prints the median, the 99th percentile and the longest time of each in milliseconds.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.reviews.policy import Policy
from signoff.core.reviews.queues import ReviewFilter, ReviewQueue, rank_of
from signoff.server.bootstrap import migrate, open_services
from signoff.settings import Settings
from signoff.stores.schema import jobs
from signoff.work.reviews.history import list_held
from signoff.work.reviews.leases import take_next
from signoff.work.services import Services

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
        "policy": Policy(),
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


async def take_all(services: Services, reviewers: int, takes: int) -> list[float]:
    """Let reviewers take answers at the same time; no two may get the same one."""
    times, taken = list[float](), list[str]()

    async def review(number: int) -> None:
        caller = Caller(user_id=1000 + number, token_id=1, role="reviewer", email=f"reviewer{number}@example.com")
        for _ in range(takes):
            job = await timed(times, lambda: take_next(services, caller, None, []))
            taken.append(job.id)  # type: ignore[attr-defined]

    await asyncio.gather(*(review(number) for number in range(reviewers)))
    assert len(set(taken)) == len(taken), "two reviewers have the same answer"
    return times


async def read_pages(services: Services) -> list[float]:
    """Read pages from the middle of the list."""
    caller = Caller(user_id=1, token_id=1, role="admin", email="ada@example.com")
    middle = rank_of(Job(**held_row(4, 0))), "job-000050000"
    times = list[float]()
    for _ in range(PAGES):
        filters = ReviewFilter(queues=(), after=middle, limit=50)
        await timed(times, lambda filters=filters: list_held(services, caller, None, filters))
    return times


def report(name: str, times: list[float]) -> None:
    """Print the distribution of some durations."""
    ordered = sorted(times)
    median, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{name:24} n={len(ordered):5}  p50 {median:7.2f}  p99 {p99:7.2f}  max {ordered[-1]:7.2f} ms")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--held", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=8)
    parser.add_argument("--takes", type=int, default=200)
    parser.add_argument("--database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "data", database_url=options.database, allow_self_review=True)
        if options.database is not None:
            await migrate(settings)
        async with open_services(settings) as services:
            await fill(services, options.held)
            await take_all(services, 1, 10)  # statements are compiled at their first use
            report(f"next, {options.reviewers} reviewers", await take_all(services, options.reviewers, options.takes))
            report("next, 1 reviewer", await take_all(services, 1, options.takes))
            report("page of 50", await read_pages(services))


if __name__ == "__main__":
    asyncio.run(main())
