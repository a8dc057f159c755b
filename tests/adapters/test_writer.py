"""Group commit: few transactions for many writes, and each write answers for itself alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.errors import Overloaded, Stale
from signoff.stores.writer import Tx, Writer
from support.stores import together, until

pytestmark = pytest.mark.anyio

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("name", sa.Text, primary_key=True))


class Place:
    """A database in memory, and how often it was asked to commit. It waits while `gate` is closed."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        metadata.create_all(self.engine)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.committed = 0

    async def run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        """See `writer.Writer`."""
        self.begun += 1
        await self.gate.wait()
        with self.engine.begin() as conn:
            results = group(Tx(conn, now=1))
        self.committed += 1
        return results

    def names(self) -> list[str]:
        """What is there."""
        with self.engine.connect() as conn:
            return list(conn.execute(sa.select(things.c.name).order_by(things.c.name)).scalars())


@pytest.fixture
def place() -> Place:
    """Return an empty database."""
    return Place()


@pytest.fixture
async def writer(place: Place) -> AsyncIterator[Writer]:
    """Yield a writer with room for ten."""
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=20)
    writer.start()
    yield writer
    place.gate.set()
    await writer.close()


def add(name: str) -> Callable[[Tx], str]:
    """An operation that adds a thing."""

    def operation(tx: Tx) -> str:
        tx.add(things, {"name": name})
        return name

    return operation


def refuse(tx: Tx) -> None:
    """Refuse, as a move does that is stale."""
    raise Stale("no")


async def outcome(writer: Writer, operation: Callable[[Tx], Any]) -> Any:
    """What a write gives, or its error."""
    try:
        return await writer.write(operation)
    except Exception as error:  # noqa: BLE001
        return error


async def busy(place: Place, writer: Writer) -> asyncio.Task[Any]:
    """A write that is being committed, until the gate opens; what comes now makes the next group."""
    place.gate.clear()
    task = asyncio.ensure_future(writer.write(add("first")))

    async def begun() -> bool:
        return place.begun > 0

    await until(begun)
    return task


async def test_many_writes_are_few_transactions(place: Place) -> None:
    writer = Writer(place.run_group, waiting_limit=1000, group_limit=100, timeout_seconds=20)
    writer.start()

    results = await together(writer.write(add(f"{number:03}")) for number in range(500))

    assert results == place.names() == [f"{number:03}" for number in range(500)]
    assert 5 <= place.committed <= 10
    await writer.close()


async def test_a_write_alone_waits_for_nobody(place: Place, writer: Writer) -> None:
    for turn in range(3):
        await writer.write(add(str(turn)))
        assert place.committed == turn + 1


async def test_an_operation_that_fails_in_a_group_fails_alone(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)
    names = ["a", "b", "c", "d", "e", "f", "g", "h", "first"]
    results = asyncio.ensure_future(together(outcome(writer, add(name)) for name in names))
    await full(writer, len(names))

    place.gate.set()
    await first

    told = await results
    assert told[:-1] == names[:-1]
    assert isinstance(told[-1], IntegrityError)
    assert place.names() == sorted(names)
    assert place.begun <= 1 + 1 + 2 * 4, "the group is halved, not taken apart"


async def test_an_error_of_any_kind_fails_alone(place: Place, writer: Writer) -> None:
    results = await together(outcome(writer, operation) for operation in (add("a"), lambda _: 1 // 0, add("b")))

    assert results[::2] == ["a", "b"]
    assert isinstance(results[1], ZeroDivisionError)
    assert place.names() == ["a", "b"]


async def test_a_refusal_fails_alone_and_costs_the_group_nothing(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)
    results = asyncio.ensure_future(together(outcome(writer, operation) for operation in (add("a"), refuse, add("b"))))
    await full(writer, 3)

    place.gate.set()
    await first

    told = await results
    assert told[::2] == ["a", "b"]
    assert isinstance(told[1], Stale)
    assert place.begun == 2


async def test_when_the_database_cannot_nothing_is_run_again(place: Place) -> None:
    begun = 0

    async def away(group: Callable[[Tx], list[Any]]) -> list[Any]:
        nonlocal begun
        begun += 1
        raise Overloaded("away")

    writer = Writer(away, waiting_limit=1000, group_limit=100, timeout_seconds=20)
    writer.start()

    results = await together(outcome(writer, add(str(number))) for number in range(100))

    assert all(isinstance(result, Overloaded) for result in results)
    assert begun == 1
    await writer.close()


async def test_what_its_caller_cancels_before_it_runs_is_not_written(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)
    left, kept = (asyncio.ensure_future(writer.write(add(name))) for name in ("left", "kept"))
    await full(writer, 2)

    left.cancel()
    place.gate.set()

    assert await kept == "kept"
    assert left.cancelled()
    assert await first == "first"
    assert place.names() == ["first", "kept"]


async def test_what_its_caller_cancels_while_it_runs_harms_nobody(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)

    first.cancel()
    place.gate.set()

    assert await writer.write(add("next")) == "next"
    assert first.cancelled()


async def test_a_write_that_waits_too_long_is_refused_and_not_written_later(place: Place) -> None:
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=0.05)
    writer.start()
    place.gate.clear()
    holding = await writer.enqueue(add("first"))

    with pytest.raises(Overloaded):
        await writer.write(add("late"))
    place.gate.set()
    await holding
    await writer.close()

    assert place.names() == ["first"]


async def test_a_full_queue_makes_writers_wait_and_not_fail(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)
    writes = [asyncio.ensure_future(writer.enqueue(add(f"{number:02}"))) for number in range(30)]
    await full(writer, 10)

    assert sum(write.done() for write in writes) <= 10

    place.gate.set()
    written = [await write for write in writes]
    assert [await result for result in written] == [f"{number:02}" for number in range(30)]
    assert await first == "first"


async def test_closing_flushes_what_waits_even_behind_a_full_queue(place: Place, writer: Writer) -> None:
    first = await busy(place, writer)
    writes = [asyncio.ensure_future(writer.write(add(f"{number:02}"))) for number in range(30)]
    await full(writer, 10)

    closing = asyncio.ensure_future(writer.close())
    place.gate.set()
    await closing

    assert [await write for write in (first, *writes)] == ["first", *(f"{number:02}" for number in range(30))]
    assert len(place.names()) == 31


async def test_closing_at_once_flushes_what_was_just_enqueued(place: Place) -> None:
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=20)
    writer.start()
    written = await writer.enqueue(add("behind"))

    await writer.close()

    assert written.result() == "behind"


async def test_a_closed_writer_refuses_at_once(place: Place, writer: Writer) -> None:
    await writer.close()
    await writer.close()

    with pytest.raises(Overloaded):
        await writer.write(add("late"))


async def test_a_future_of_a_write_resolves_when_it_is_committed(place: Place, writer: Writer) -> None:
    place.gate.clear()
    good, bad = await writer.enqueue(add("good")), await writer.enqueue(refuse)

    assert not good.done()
    place.gate.set()

    assert await good == "good"
    assert place.names() == ["good"]
    with pytest.raises(Stale):
        await bad


async def test_rows_of_a_group_go_in_together_and_can_be_seen_earlier(place: Place, writer: Writer) -> None:
    statements: list[str] = []
    sa.event.listen(place.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def look(tx: Tx) -> list[str]:
        tx.flush()
        return list(tx.conn.execute(sa.select(things.c.name)).scalars())

    first = await busy(place, writer)
    statements.clear()
    results = asyncio.ensure_future(together(outcome(writer, op) for op in (add("a"), add("b"), look, add("c"))))
    await full(writer, 4)
    place.gate.set()
    await first

    assert (await results)[2] == ["first", "a", "b"]
    assert sum(statement.startswith("INSERT") for statement in statements) == 3


async def test_operations_run_one_after_another_wherever_the_database_runs_them() -> None:
    running = threading.Lock()

    async def in_a_thread(group: Callable[[Tx], list[Any]]) -> list[Any]:
        return await asyncio.to_thread(group, Tx(None, now=1))  # type: ignore[arg-type]

    def operation(tx: Tx) -> bool:
        with running:
            return not running.acquire(blocking=False)

    writer = Writer(in_a_thread, waiting_limit=1000, group_limit=7, timeout_seconds=20)
    writer.start()
    assert all(await together(writer.write(operation) for _ in range(100)))
    await writer.close()


async def full(writer: Writer, size: int) -> None:
    """Return when so many wait."""

    async def look() -> bool:
        return writer._waiting.qsize() == size

    await until(look)
