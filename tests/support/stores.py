"""Stores for tests, jobs for them, and direct access to their tables."""

import asyncio
import base64
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from signoff.core.counters import Counter
from signoff.core.job import Event, Job
from signoff.core.limits import Limit, Reservation, ReservationRequest
from signoff.errors import Overloaded, Stale
from signoff.infra.vault import Vault
from signoff.store import Topic, TransitionRequest
from signoff.stores.sql import SqlStore
from simulation.store import MemoryStore, Near
from simulation.tables import Tables
from support.database_files import make_file

AStore = SqlStore | MemoryStore
MEMORIES = defaultdict[str, Tables](Tables)
T = TypeVar("T")
WAIT_SECONDS = 60.0
VAULT = Vault([base64.urlsafe_b64encode(bytes(32))])  # the same one in all processes of a test
BODY = b'{"model":"echo","messages":[{"role":"user","content":"Hello"}]}'
ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"Hello yourself"}}]}'
_numbers = itertools.count()


def store_at(url: str) -> AStore:
    """Return a store on a database, or on the in-memory tables with the name `memory:…`."""
    if url.startswith("memory:"):
        return MemoryStore(MEMORIES[url], Near(MEMORIES[url], lambda: time.time_ns() // 1000))
    return SqlStore(url, VAULT)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[AStore]:
    """Yield a started store, and close it after the block. A file is created first, and an empty database migrated."""
    store = store_at(url)
    try:
        await _start(store, url)
        yield store
    finally:
        await store.close()


async def _start(store: AStore, url: str) -> None:
    if url.startswith("sqlite:///"):
        make_file(Path(url.removeprefix("sqlite:///")))
    elif url.endswith("-empty"):  # that of `empty_postgres_url`
        await store.migrate()
    await store.start()


def a_job(prefix: str = "job", **more: Any) -> Job:
    """Return a new job, which waits in the later lane unless `more` says otherwise. Ids increase."""
    plain: dict[str, Any] = {
        "id": f"{prefix}-{next(_numbers):06d}",
        "status": "bot",
        "door": "test",
        "lane": "later",
        "user_id": 1,
        "token_id": 1,
        "target": "echo",
        "model": "echo",
        "path": "/v1/chat/completions",
        "body": BODY,
    }
    return Job(**(plain | more))


def a_call(**more: Any) -> Job:
    """Return a waiting call that has ended with an answer, and was never stored."""
    return a_job(**({"status": "success", "lane": "now", "response": ANSWER} | more))


async def logged(store: AStore, *calls: Job, verbs: Sequence[str] = ("submit", "claim", "succeed")) -> list[int]:
    """Log calls, and return the times of their creation."""
    writes = [await store.jobs.log_call(call, actor="ann", verbs=verbs) for call in calls]
    return [await write for write in writes]


def a_step(verb: str, **more: Any) -> TransitionRequest:
    """Return a transition requested by Ann, with the lease `mine`, round 1 and no settled step, changed by `more`."""
    plain = {
        "verb": verb,
        "actor": "user:ann",
        "lease": "mine",
        "round": 1,
        "reviewer": "ann",
        "settled_steps": 0,
    }
    return TransitionRequest(**(plain | more))


async def inserted(
    store: AStore, *, due_seconds: float = 0, lease_seconds: float | None = None, settled: int = 0, **more: Any
) -> Job:
    """Insert a job in any state, with `settled` steps that have ended; return it as stored."""
    job = a_job(**more)
    for node in range(settled):
        position = {"parent_id": job.id, "parent_round": job.round, "node": f"0.{node}"}
        await store.jobs.insert(a_job(status="success", **position), actor="test")
    return await store.jobs.insert(job, actor="test", due_seconds=due_seconds, lease_seconds=lease_seconds)


async def leased(store: AStore, **more: Any) -> Job:
    """Insert a job that a worker performs with the lease `mine`."""
    return await inserted(store, lease="mine", lease_seconds=60, **more)


async def held(store: AStore, **more: Any) -> Job:
    """Insert a job with an answer, in its first round of review."""
    job = await leased(store, **more)
    return await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))


async def reserved(store: AStore, limit: Limit, tokens: int) -> Reservation:
    """Reserve `tokens` under `limit` for a minute."""
    reservation = await store.limits.reserve(
        ReservationRequest(id="job", limits=((limit.name, limit),), tokens=tokens, lease_seconds=60)
    )
    assert isinstance(reservation, Reservation)
    return reservation


async def settled(store: AStore, reservation: Reservation, tokens: int) -> Counter:
    """Settle the reservation, with repeats until the store confirms it; return its only counter."""
    while True:
        with contextlib.suppress(Overloaded):
            await store.limits.settle(reservation, tokens=tokens)
            break
    [counter] = (await store.limits.counters([name for name, _ in reservation.request.limits])).values()
    return counter


async def state(store: AStore, job_id: str) -> tuple[Job | None, list[Event]]:
    """Return all that the store has of a job."""
    return await store.jobs.get(job_id), await store.jobs.events(job_id)


async def is_refused(store: AStore, job: Job, *steps: TransitionRequest) -> bool:
    """Return True if the transitions are refused as stale; assert that they changed nothing then."""
    before = await state(store, job.id)
    try:
        await store.jobs.transition(job.id, *steps)
    except Stale:
        return await state(store, job.id) == before
    return False


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """Run all awaitables at the same time, and return their results."""

    async def one(work: Awaitable[T]) -> T:
        return await work

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(work)) for work in works]
    return [task.result() for task in tasks]


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = WAIT_SECONDS) -> T:
    """Return the first value of `look` that is not None; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not (value := await look()):
            await asyncio.sleep(0.01)
    return value


class ChangeRecorder:
    """A listener that records the changes it gets."""

    def __init__(self, store: AStore) -> None:
        self.recorded: list[tuple[Topic, str]] = []
        store.listen(lambda topic, name: self.recorded.append((topic, name)))

    async def hears(self, *news: tuple[Topic, str]) -> None:
        """Wait until one of the changes in `news` has arrived."""

        async def has_arrived() -> bool:
            return any(item in self.recorded for item in news)

        await until(has_arrived)


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[AStore, ChangeRecorder]]:
    """Yield a store and a listener that records what others write from now on."""
    store = store_at(url)
    recorder = ChangeRecorder(store)
    try:
        await _start(store, url)
        if url.startswith("postgresql"):
            await recorder.hears(("any", ""))  # the first thing it says once it is connected
        recorder.recorded.clear()
        yield store, recorder
    finally:
        await store.close()


async def rows(store: AStore, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """Return the rows of a query on the database of a store."""
    if isinstance(store, MemoryStore):
        return looked_up(store.tables, query)
    return await store._database.read(lambda conn, _: [dict(row) for row in conn.execute(query).mappings()])


async def execute(store: AStore, statement: sa.Update) -> None:
    """Change the database of a store directly."""
    if isinstance(store, MemoryStore):
        changed(store.tables, statement)
    else:
        await store._database.write(lambda tx: tx.conn.execute(statement).rowcount)


def looked_up(tables: Tables, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """Return all rows of the table of `query`."""
    stored = sorted(tables.decisions.items(), key=lambda item: item[0])
    decisions = [{"job_id": name, "round": number, "decision": decision} for (name, number), (decision, _) in stored]
    votes = [row | {"reviewer": one.reviewer, "verdict": one.verdict} for row in decisions for one in [row["decision"]]]
    return {"votes": votes, "decisions": decisions}[query.get_final_froms()[0].name]  # type: ignore[attr-defined]


def changed(tables: Tables, statement: sa.Update) -> None:
    """Set the values of `statement` in every row of its table."""
    rows: dict[str, Any] = getattr(tables, statement.table.name)  # type: ignore[attr-defined]
    for name, row in rows.items():
        rows[name] = msgspec.structs.replace(row, **statement.compile().params)
    tables.unfinished = {job.id: job for job in tables.jobs.values() if not job.is_terminal}
