"""Group commit: few transactions for many writes, of which each succeeds or fails on its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.errors import Overloaded, Stale
from signoff.stores.transaction import Tx
from signoff.stores.writer import GATHER_SECONDS, MAX_DEFERRED, RETRY_SECONDS, Writer
from support.stores import together, until

pytestmark = pytest.mark.anyio

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("name", sa.Text, primary_key=True))


class MemoryDatabase:
    """A database in memory, which counts its transactions and waits while `gate` is closed."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        metadata.create_all(self.engine)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.committed = 0

    async def run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        """Run the operations of a group in one transaction; see `writer.Writer`."""
        self.begun += 1
        await self.gate.wait()
        with self.engine.begin() as conn:
            results = group(Tx(conn, now=1))
        self.committed += 1
        return results

    def names(self) -> list[str]:
        """Return the names of all things."""
        with self.engine.connect() as conn:
            return list(conn.execute(sa.select(things.c.name).order_by(things.c.name)).scalars())


@pytest.fixture
def place() -> MemoryDatabase:
    """Return an empty database."""
    return MemoryDatabase()


@pytest.fixture
async def writer(place: MemoryDatabase) -> AsyncIterator[Writer]:
    """Yield a writer whose queue has a limit of ten."""
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=20)
    writer.start()
    yield writer
    place.gate.set()
    await writer.close()


def add(name: str) -> Callable[[Tx], str]:
    """Return an operation that adds a thing."""

    def operation(tx: Tx) -> str:
        tx.add(things, {"name": name})
        return name

    return operation


def refuse(tx: Tx) -> None:
    """Raise Stale, like a transition that is out of date."""
    raise Stale("no")


async def outcome(writer: Writer, operation: Callable[[Tx], Any]) -> Any:
    """Return the result of a write, or its error."""
    try:
        return await writer.write(operation)
    except Exception as error:  # noqa: BLE001
        return error


async def start_blocked_write(place: MemoryDatabase, writer: Writer) -> asyncio.Task[Any]:
    """Start a write that waits for the gate, and return its task; later writes form the next group."""
    place.gate.clear()
    task = asyncio.ensure_future(writer.write(add("first")))

    async def begun() -> bool:
        return place.begun > 0

    await until(begun)
    return task


async def test_many_writes_are_few_transactions(place: MemoryDatabase) -> None:
    writer = Writer(place.run_group, waiting_limit=1000, group_limit=100, timeout_seconds=20)
    writer.start()

    results = await together(writer.write(add(f"{number:03}")) for number in range(500))

    assert results == place.names() == [f"{number:03}" for number in range(500)]
    assert 5 <= place.committed <= 10
    await writer.close()


async def test_a_log_that_raises_ends_no_other_writes(
    place: MemoryDatabase, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    def divide(tx: Tx) -> float:
        return tx.now / 0

    monkeypatch.setattr("signoff.stores.writer.log.error", fail)
    blocked = await start_blocked_write(place, writer)
    broken, others = outcome(writer, divide), [writer.write(add(name)) for name in ("second", "third")]
    writes = together([broken, *others])
    place.gate.set()
    error, *results = await writes
    assert isinstance(error, ZeroDivisionError)
    assert results == ["second", "third"]
    assert [await blocked, await writer.write(add("fourth"))] == ["first", "fourth"]


async def test_a_single_write_is_committed_at_once(place: MemoryDatabase, writer: Writer) -> None:
    for turn in range(3):
        await writer.write(add(str(turn)))
        assert place.committed == turn + 1


async def test_an_operation_that_fails_in_a_group_fails_alone(place: MemoryDatabase, writer: Writer) -> None:
    first = await start_blocked_write(place, writer)
    names = ["a", "b", "c", "d", "e", "f", "g", "h", "first"]
    results = asyncio.ensure_future(together(outcome(writer, add(name)) for name in names))
    await until_queued(writer, len(names))

    place.gate.set()
    await first

    outcomes = await results
    assert outcomes[:-1] == names[:-1]
    assert isinstance(outcomes[-1], IntegrityError)
    assert place.names() == sorted(names)
    assert place.begun <= 1 + 1 + 2 * 4, "the group is halved, not taken apart"


async def test_operations_that_wait_for_locks_run_in_the_order_of_their_keys_and_first(writer: Writer) -> None:
    keys, order = ["b", None, "a", "b", None], list[int]()

    def note(number: int) -> Callable[[Tx], None]:
        return lambda _: order.append(number)

    await together(writer.write(note(number), lock_key=key) for number, key in enumerate(keys))

    assert order == [2, 0, 3, 1, 4]


async def test_rows_of_a_group_are_not_inserted_within_a_savepoint(place: MemoryDatabase, writer: Writer) -> None:
    def flush_within(tx: Tx) -> None:
        tx.add(things, {"name": "b"})
        with tx.conn.begin_nested():
            tx.flush()

    results = await asyncio.gather(writer.write(add("a")), writer.write(flush_within), return_exceptions=True)

    assert isinstance(results[1], RuntimeError)
    assert place.names() == ["a"]


async def test_an_error_of_any_kind_fails_alone(place: MemoryDatabase, writer: Writer) -> None:
    results = await together(outcome(writer, operation) for operation in (add("a"), lambda _: 1 // 0, add("b")))

    assert results[::2] == ["a", "b"]
    assert isinstance(results[1], ZeroDivisionError)
    assert place.names() == ["a", "b"]


async def test_a_refusal_fails_alone_and_costs_the_group_nothing(place: MemoryDatabase, writer: Writer) -> None:
    first = await start_blocked_write(place, writer)
    results = asyncio.ensure_future(together(outcome(writer, operation) for operation in (add("a"), refuse, add("b"))))
    await until_queued(writer, 3)

    place.gate.set()
    await first

    outcomes = await results
    assert outcomes[::2] == ["a", "b"]
    assert isinstance(outcomes[1], Stale)
    assert place.begun == 2


async def test_no_operation_is_run_again_when_the_database_is_away(place: MemoryDatabase) -> None:
    begun = 0

    async def fail(group: Callable[[Tx], list[Any]]) -> list[Any]:
        nonlocal begun
        begun += 1
        raise Overloaded("away")

    writer = Writer(fail, waiting_limit=1000, group_limit=100, timeout_seconds=20)
    writer.start()

    results = await together(outcome(writer, add(str(number))) for number in range(100))

    assert all(isinstance(result, Overloaded) for result in results)
    assert begun == 1
    await writer.close()


async def test_a_write_that_is_cancelled_before_it_runs_is_not_written(place: MemoryDatabase, writer: Writer) -> None:
    first = await start_blocked_write(place, writer)
    cancelled, other = (asyncio.ensure_future(writer.write(add(name))) for name in ("left", "kept"))
    await until_queued(writer, 2)

    cancelled.cancel()
    place.gate.set()

    assert await other == "kept"
    assert cancelled.cancelled()
    assert await first == "first"
    assert place.names() == ["first", "kept"]


async def test_a_write_that_is_cancelled_while_it_runs_does_not_affect_others(
    place: MemoryDatabase, writer: Writer
) -> None:
    first = await start_blocked_write(place, writer)

    first.cancel()
    place.gate.set()

    assert await writer.write(add("next")) == "next"
    assert first.cancelled()


async def test_a_write_that_waits_too_long_is_refused_and_not_written_later(place: MemoryDatabase) -> None:
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=0.05)
    writer.start()
    place.gate.clear()
    first = await writer.enqueue(add("first"))

    with pytest.raises(Overloaded):
        await writer.write(add("late"))
    place.gate.set()
    await first
    await writer.close()

    assert place.names() == ["first"]


async def test_a_full_queue_makes_writers_wait_and_not_fail(place: MemoryDatabase, writer: Writer) -> None:
    first = await start_blocked_write(place, writer)
    writes = [asyncio.ensure_future(writer.enqueue(add(f"{number:02}"))) for number in range(30)]
    await until_queued(writer, 10)

    assert sum(write.done() for write in writes) <= 10

    place.gate.set()
    written = [await write for write in writes]
    assert [await result for result in written] == [f"{number:02}" for number in range(30)]
    assert await first == "first"


async def test_closing_flushes_what_waits_even_behind_a_full_queue(place: MemoryDatabase, writer: Writer) -> None:
    first = await start_blocked_write(place, writer)
    writes = [asyncio.ensure_future(writer.write(add(f"{number:02}"))) for number in range(30)]
    await until_queued(writer, 10)

    closing = asyncio.ensure_future(writer.close())
    place.gate.set()
    await closing

    assert [await write for write in (first, *writes)] == ["first", *(f"{number:02}" for number in range(30))]
    assert len(place.names()) == 31


async def test_closing_at_once_flushes_what_was_just_enqueued(place: MemoryDatabase) -> None:
    writer = Writer(place.run_group, waiting_limit=10, group_limit=100, timeout_seconds=20)
    writer.start()
    written = await writer.enqueue(add("behind"))

    await writer.close()

    assert written.result() == "behind"


async def test_a_closed_writer_refuses_at_once(place: MemoryDatabase, writer: Writer) -> None:
    await writer.close()
    await writer.close()

    with pytest.raises(Overloaded):
        await writer.write(add("late"))


async def test_a_future_of_a_write_resolves_when_it_is_committed(place: MemoryDatabase, writer: Writer) -> None:
    place.gate.clear()
    good, bad = await writer.enqueue(add("good")), await writer.enqueue(refuse)

    assert not good.done()
    place.gate.set()

    assert await good == "good"
    assert place.names() == ["good"]
    with pytest.raises(Stale):
        await bad


async def test_rows_of_a_group_are_inserted_together_and_can_be_flushed_earlier(
    place: MemoryDatabase, writer: Writer
) -> None:
    statements: list[str] = []
    sa.event.listen(place.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def read_names(tx: Tx) -> list[str]:
        tx.flush()
        return list(tx.conn.execute(sa.select(things.c.name)).scalars())

    first = await start_blocked_write(place, writer)
    statements.clear()
    results = asyncio.ensure_future(together(outcome(writer, op) for op in (add("a"), add("b"), read_names, add("c"))))
    await until_queued(writer, 4)
    place.gate.set()
    await first

    assert (await results)[2] == ["first", "a", "b"]
    assert sum(statement.startswith("INSERT") for statement in statements) == 3


async def test_operations_run_one_after_another_in_any_thread() -> None:
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


async def until_value(value: Callable[[], Any]) -> None:
    """Wait until `value` returns something true."""

    async def is_true() -> bool:
        return bool(value())

    await until(is_true)


async def until_queued(writer: Writer, size: int) -> None:
    """Wait until `size` operations are in the queue."""

    async def is_queued() -> bool:
        return writer._waiting.qsize() == size

    await until(is_queued)


# Deferred operations


class SlowTimers:
    """The short timers of an event loop, which fire only when `fire` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._timers = list[SlowTimer]()
        self._really_call_later = asyncio.get_running_loop().call_later
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(self, seconds: float, function: Callable[..., None], *arguments: Any, **options: Any) -> Any:
        if arguments or seconds not in {GATHER_SECONDS, RETRY_SECONDS}:  # such as those of `asyncio.sleep`
            return self._really_call_later(seconds, function, *arguments, **options)
        self._timers.append(SlowTimer(function, self._timers))
        return self._timers[-1]

    async def fire(self) -> None:
        """Call the functions of all timers that run, once there is one."""
        await until_value(lambda: self._timers)
        for timer in list(self._timers):
            timer.cancel()
            timer.function()


class SlowTimer:
    """A timer that does not fire by itself."""

    def __init__(self, function: Callable[[], None], timers: list["SlowTimer"]) -> None:
        self.function = function
        self._timers = timers

    def cancel(self) -> None:
        """Cancel the timer."""
        if self in self._timers:
            self._timers.remove(self)

    def when(self) -> float:
        """Return its time, which never comes."""
        return float("inf")


@pytest.fixture
async def deferring(place: MemoryDatabase) -> AsyncIterator[Writer]:
    """Yield a writer with a long queue."""
    writer = Writer(place.run_group, waiting_limit=1000, group_limit=100, timeout_seconds=20)
    writer.start()
    yield writer
    await writer.close()


async def test_deferred_operations_share_a_transaction(place: MemoryDatabase, deferring: Writer) -> None:
    writes = [await deferring.defer(add(f"{number:02}")) for number in range(99)]
    assert [await write for write in writes] == place.names()
    assert place.committed <= 2


async def test_a_write_takes_what_was_deferred_along(place: MemoryDatabase, deferring: Writer) -> None:
    deferred = await deferring.defer(add("a"))
    await deferring.write(add("b"))
    assert deferred.result() == "a"
    assert (place.names(), place.committed) == (["a", "b"], 1)


async def test_a_full_group_of_deferred_operations_is_committed_at_once(
    place: MemoryDatabase, deferring: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        SlowTimers(patch)
        writes = [await deferring.defer(add(f"{number:03}")) for number in range(100)]
        assert len(await together(writes)) == 100
    assert place.committed == 1


async def test_operations_deferred_during_a_commit_wait_for_others(
    place: MemoryDatabase, deferring: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await start_blocked_write(place, deferring)
    with monkeypatch.context() as patch:
        timers = SlowTimers(patch)
        one = await deferring.defer(add("one"))
        place.gate.set()
        await first
        other = await deferring.defer(add("other"))
        assert place.committed == 1
        await timers.fire()
        await together([one, other])
    assert place.committed == 2


async def test_a_deferred_operation_is_run_again_while_the_database_is_unavailable(
    place: MemoryDatabase, deferring: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_group, failures = deferring._run_group, 0

    async def fail(group: object) -> list[Any]:
        nonlocal failures
        failures += 1
        raise Overloaded("The disk is full.")

    deferring._run_group = fail
    with monkeypatch.context() as patch:
        timers = SlowTimers(patch)
        deferred = await deferring.defer(add("a"))
        for _ in range(3):
            await timers.fire()
        with pytest.raises(Overloaded):
            await deferring.write(add("b"))
        deferring._run_group = run_group
        await timers.fire()
        assert await deferred == "a"
    assert (failures >= 2, place.names()) == (True, ["a"])


async def test_a_group_of_deferred_operations_that_is_too_large_is_split(
    place: MemoryDatabase, deferring: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_group, sizes, fitting = deferring._run_group, list[int](), 10

    async def run_if_small(group: Callable[[Tx], list[Any]]) -> list[Any]:
        def count(tx: Tx) -> list[Any]:
            results = group(tx)
            sizes.append(len(results))
            if len(results) > fitting:
                raise Overloaded("The database does not answer.")
            return results

        return await run_group(count)

    deferring._run_group = run_if_small
    monkeypatch.setattr("signoff.stores.writer.RETRY_SECONDS", 0)
    names = [f"{number:03}" for number in range(100)]
    writes = [await deferring.defer(add(name)) for name in names]
    assert await together(writes) == names == place.names()
    assert max(sizes) > fitting
    # the database takes large groups again
    fitting = 100
    while sizes[-1] < 50:
        await together([await deferring.defer(add(f"{len(sizes):03}-{number:03}")) for number in range(100)])


async def test_a_deferred_operation_that_is_wrong_fails(place: MemoryDatabase, deferring: Writer) -> None:
    await deferring.write(add("a"))
    good, bad = await deferring.defer(add("b")), await deferring.defer(add("a"))
    with pytest.raises(IntegrityError):
        await bad
    assert await good == "b"


async def test_closing_writes_what_was_deferred(place: MemoryDatabase, deferring: Writer) -> None:
    deferred = [await deferring.defer(add(name)) for name in ("a", "b")]
    await deferring.close()
    assert [write.result() for write in deferred] == ["a", "b"] == place.names()
    with pytest.raises(Overloaded):
        await deferring.defer(add("late"))


async def test_closing_gives_up_what_the_database_does_not_take(place: MemoryDatabase, deferring: Writer) -> None:
    async def fail(group: object) -> list[Any]:
        raise Overloaded("The disk is full.")

    deferring._run_group = fail
    deferred = await deferring.defer(add("a"))
    await deferring.close()
    with pytest.raises(Overloaded):
        await deferred


async def test_closing_writes_what_waits_for_its_repetition(
    place: MemoryDatabase, deferring: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_group, has_failed = deferring._run_group, asyncio.Event()

    async def fail(group: object) -> list[Any]:
        has_failed.set()
        raise Overloaded("The disk is full.")

    deferring._run_group = fail
    with monkeypatch.context() as patch:
        SlowTimers(patch)
        deferred = await deferring.defer(add("a"), at_once=True)
        await has_failed.wait()
        await until_value(lambda: deferring._repeats)
        deferring._run_group = run_group
        await deferring.close()
        assert (deferred.result(), place.names()) == ("a", ["a"])


async def test_an_operation_that_was_committed_without_its_result_is_not_run_twice(
    place: MemoryDatabase, deferring: Writer
) -> None:
    run_group, runs = deferring._run_group, 0

    async def lose_the_first_result(group: Callable[[Tx], list[Any]]) -> list[Any]:
        nonlocal runs
        runs += 1
        results = await run_group(group)
        if runs == 1:
            raise Overloaded("The connection was lost.")
        return results

    deferring._run_group = lose_the_first_result
    writes = [await deferring.defer(add(name)) for name in ("a", "b")]
    await together(writes)
    assert place.names() == ["a", "b"]


async def test_an_operation_whose_caller_leaves_before_it_is_queued_gives_its_room_back(place: MemoryDatabase) -> None:
    writer = Writer(place.run_group, waiting_limit=1, group_limit=100, timeout_seconds=20)
    writer.start()
    first = await start_blocked_write(place, writer)
    second = asyncio.ensure_future(writer.write(add("second")))  # the queue is full
    await until_queued(writer, 1)
    leaving = asyncio.ensure_future(writer.defer(add("left")))
    await until_value(lambda: writer._deferred_slots._value < MAX_DEFERRED)
    leaving.cancel()
    await asyncio.wait([leaving])
    place.gate.set()
    await together([first, second])
    assert writer._deferred_slots._value == MAX_DEFERRED
    await writer.close()


async def test_no_more_operations_are_deferred_than_may_be_lost(place: MemoryDatabase) -> None:
    writer = Writer(place.run_group, waiting_limit=10_000, group_limit=10_000, timeout_seconds=20)
    writer.start()
    first = await start_blocked_write(place, writer)
    deferrals = [asyncio.ensure_future(writer.defer(add(f"{number:04}"))) for number in range(MAX_DEFERRED + 5)]
    await until_queued(writer, MAX_DEFERRED)
    assert sum(deferral.done() for deferral in deferrals) == MAX_DEFERRED
    place.gate.set()
    await first
    writes = [await deferral for deferral in deferrals]
    await together(writes)
    assert len(place.names()) == 1 + MAX_DEFERRED + 5
    await writer.close()
