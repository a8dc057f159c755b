"""Stores for tests, jobs to put into them, and a look behind their promise."""

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from fresh import make_file
from signoff.core.job import Event, Job
from signoff.core.limits import Counter, Limit, Reservation, ReservationRequest
from signoff.errors import Overloaded, Stale
from signoff.store import Topic, TransitionRequest
from signoff.stores.sql import SqlStore
from simulation.store import MemoryStore, Near
from simulation.tables import Tables

AStore = SqlStore | MemoryStore
MEMORIES = defaultdict[str, Tables](Tables)
T = TypeVar("T")
WAIT_SECONDS = 20.0
BODY = b'{"model":"echo","messages":[{"role":"user","content":"Hello"}]}'
ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"Hello yourself"}}]}'
_numbers = itertools.count()


def store_at(url: str) -> AStore:
    """A store on a database, or in the memory with the name `memory:…`."""
    if url.startswith("memory:"):
        return MemoryStore(MEMORIES[url], Near(MEMORIES[url], lambda: time.time_ns() // 1000))
    return SqlStore(url)


async def _migrated(store: AStore, url: str) -> None:
    if url.startswith("sqlite:///"):
        make_file(Path(url.removeprefix("sqlite:///")))
    else:
        await store.migrate()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[AStore]:
    """A migrated and started store; it is closed with the block."""
    store = store_at(url)
    try:
        await _migrated(store, url)
        await store.start()
        yield store
    finally:
        await store.close()


def a_job(prefix: str = "job", **more: Any) -> Job:
    """A new job that waits in the later lane, unless `more` says otherwise; later ones have greater ids."""
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


def a_step(verb: str, **more: Any) -> TransitionRequest:
    """A step of Ann's, who holds the lease `mine` and saw round 1 and no step settled, unless `more` says so."""
    plain = {"verb": verb, "actor": "user:ann", "lease": "mine", "round": 1, "reviewer": "ann", "settled_steps": 0}
    return TransitionRequest(**(plain | more))


async def inserted(
    store: AStore, *, due_seconds: float = 0, lease_seconds: float | None = None, settled: int = 0, **more: Any
) -> Job:
    """A job as it stands in the store, in any state, with so many steps that have settled."""
    job = a_job(**more)
    for node in range(settled):
        place = {"parent_id": job.id, "parent_round": job.round, "node": f"0.{node}"}
        await store.jobs.insert(a_job(status="success", **place), actor="test")
    return await store.jobs.insert(job, actor="test", due_seconds=due_seconds, lease_seconds=lease_seconds)


async def leased(store: AStore, **more: Any) -> Job:
    """A job that a worker holds with the lease `mine`."""
    return await inserted(store, lease="mine", lease_seconds=60, **more)


async def held(store: AStore, **more: Any) -> Job:
    """A job with an answer, in its first round of review."""
    job = await leased(store, **more)
    return await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))


async def reserved(store: AStore, limit: Limit, tokens: int) -> Reservation:
    """Room for so many tokens, for a minute."""
    room = await store.quotas.reserve(
        ReservationRequest(id="job", limits=((limit.name, limit),), tokens=tokens, lease_seconds=60)
    )
    assert isinstance(room, Reservation)
    return room


async def settled(store: AStore, reservation: Reservation, tokens: int) -> Counter:
    """The only meter of a room, after its settling was asked for until the store said that it was done."""
    while True:
        with contextlib.suppress(Overloaded):
            await store.quotas.settle(reservation, tokens=tokens)
            break
    [counter] = (await store.quotas.counters([name for name, _ in reservation.request.limits])).values()
    return counter


async def state(store: AStore, job_id: str) -> tuple[Job | None, list[Event]]:
    """Everything that the store says of a job."""
    return await store.jobs.get(job_id), await store.jobs.events(job_id)


async def is_refused(store: AStore, job: Job, *steps: TransitionRequest) -> bool:
    """Whether `steps` are stale, and changed nothing."""
    before = await state(store, job.id)
    try:
        await store.jobs.transition(job.id, *steps)
    except Stale:
        return await state(store, job.id) == before
    return False


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, which run at once."""

    async def one(work: Awaitable[T]) -> T:
        return await work

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(work)) for work in works]
    return [task.result() for task in tasks]


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = WAIT_SECONDS) -> T:
    """What `look` finds, as soon as it finds something."""
    async with asyncio.timeout(seconds):
        while not (found := await look()):
            await asyncio.sleep(0.01)
    return found


class Ear:
    """A listener, and what it has heard."""

    def __init__(self, store: AStore) -> None:
        self.heard: list[tuple[Topic, str]] = []
        store.listen(lambda topic, name: self.heard.append((topic, name)))

    async def hears(self, *news: tuple[Topic, str]) -> None:
        """Returns as soon as one of `news` was heard."""

        async def look() -> bool:
            return any(item in self.heard for item in news)

        await until(look)


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[AStore, Ear]]:
    """A store of its own, and an ear that hears what others write from now on."""
    store = store_at(url)
    ear = Ear(store)
    try:
        await _migrated(store, url)
        await store.start()
        if url.startswith("postgresql"):
            await ear.hears(("any", ""))  # the first thing it says once it is connected
        ear.heard.clear()
        yield store, ear
    finally:
        await store.close()


async def rows(store: AStore, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """What stands in the database behind a store."""
    if isinstance(store, MemoryStore):
        return looked_up(store.tables, query)
    return await store._database.read(lambda conn, _: [dict(row) for row in conn.execute(query).mappings()])


async def execute(store: AStore, statement: sa.Update) -> None:
    """Changes what stands there, behind the store's back."""
    if isinstance(store, MemoryStore):
        changed(store.tables, statement)
    else:
        await store._database.write(lambda tx: tx.conn.execute(statement).rowcount)


def looked_up(tables: Tables, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """All rows of the table that `query` is about."""
    made = sorted(tables.decisions.items(), key=lambda item: item[0])
    decisions = [{"job_id": name, "round": number, "decision": kept} for (name, number), (kept, _) in made]
    votes = [
        row | {"reviewer": kept.reviewer, "verdict": kept.verdict} for row in decisions for kept in [row["decision"]]
    ]
    return {"votes": votes, "decisions": decisions}[query.get_final_froms()[0].name]  # type: ignore[attr-defined]


def changed(tables: Tables, statement: sa.Update) -> None:
    """Gives every row of the table that `statement` is about its values."""
    kept: dict[str, Any] = getattr(tables, statement.table.name)  # type: ignore[attr-defined]
    for name, row in kept.items():
        kept[name] = msgspec.structs.replace(row, **statement.compile().params)
    tables.unfinished = {job.id: job for job in tables.jobs.values() if not job.is_terminal}
