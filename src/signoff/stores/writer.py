"""Group commit: when a transaction ends, the next one starts with all operations that wait.

An operation whose result nobody needs at once may wait some milliseconds for others, as a commit costs more than a row.
"""

import asyncio
import os
import socket
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from operator import add, itemgetter
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Table
from sqlalchemy.exc import IntegrityError

from signoff.core.fingerprint import fingerprint
from signoff.errors import Overloaded, SignoffError
from signoff.store import Topic
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.statements import insert_rows, insert_statement, upsert_statement

T = TypeVar("T")
# Processes on one PostgreSQL add to sums of their own, mostly, so that they do not wait for each other's commits.
SHARDS = 16
# How long a deferred operation waits for others.
GATHER_SECONDS = 0.01
# Maximum number of calls whose callers have their answers and whose rows are not committed: a crash loses these.
MAX_DEFERRED = 512
RETRY_SECONDS = 0.1
log = structlog.get_logger()


class Tx(msgspec.Struct):
    """A transaction.

    `now` is the database's time at its start, in microseconds. `changes` are the notifications to publish when it is
    committed.
    """

    conn: Connection
    now: int
    changes: list[tuple[Topic, str]] = []
    signer: ReceiptSigner | None = None
    """Access to the keys that sign receipts; None if this process cannot sign."""
    _added: dict[Table, list[dict[str, Any]]] = {}
    _missing: dict[Table, dict[Any, dict[str, Any]]] = {}
    _sums: dict[Table, dict[tuple[Any, ...], tuple[int, ...]]] = {}
    _at_end: dict[Callable[["Tx", list[Any]], None], list[Any]] = {}

    def at_end(self, function: Callable[["Tx", list[T]], None], item: T) -> None:
        """Call `function` once with all items, at the end of the whole group, before the sums are written.

        A lock that it takes then is held for a short time only, and comes after all locks of rows.
        """
        self._at_end.setdefault(function, []).append(item)

    def run_at_end(self) -> None:
        """Call the functions of `at_end`."""
        pending, self._at_end = self._at_end, {}
        for function, items in pending.items():
            function(self, items)

    def add(self, table: Table, row: dict[str, Any]) -> None:
        """Add a row. It is inserted with those of the whole group, at its end or when an operation calls `flush`."""
        self._added.setdefault(table, []).append(row)

    def added_to(self, table: Table) -> Sequence[dict[str, Any]]:
        """Return the rows that were added to a table, and are not inserted yet."""
        return self._added.get(table, ())

    def add_missing(self, table: Table, row: dict[str, Any]) -> None:
        """Add a row, unless the table has one with its primary key."""
        key = tuple([row[column.name] for column in table.primary_key])
        self._missing.setdefault(table, {}).setdefault(key, row)

    def add_to_sum(self, table: Table, group: tuple[Any, ...], amounts: tuple[int, ...]) -> None:
        """Add `amounts` to the row of `group` in a table of sums, at the end of the whole group of operations.

        The columns of the table are `key`, those of `group`, and those of `amounts`.
        """
        sums = self._sums.setdefault(table, {})
        sums[group] = tuple(map(add, sums[group], amounts)) if group in sums else amounts

    def flush_sums(self) -> None:
        """Write the sums. Rows that other processes may update too are locked in the order of tables and keys."""
        for table, sums in sorted(self._sums.items(), key=lambda item: item[0].name):
            text, names = upsert_statement(table, self.conn.dialect)
            columns = [column.name for column in table.c]
            shard = _shard() if self.conn.dialect.name == "postgresql" else 0
            rows = [dict(zip(columns, (_key_of(shard, group), *group, *sums[group]), strict=True)) for group in sums]
            rows.sort(key=itemgetter("key"))
            insert_rows(self.conn, text, [tuple(map(row.__getitem__, names)) for row in rows])

    def flush(self) -> None:
        """Insert the rows that were added so far. Rows that other processes may add too come in order of their keys.

        Rows of other operations are among them, so an operation must not call it where it may still be undone alone.
        """
        if not self._added and not self._missing:
            return
        if self.conn.in_nested_transaction():
            raise RuntimeError("The end of the savepoint could undo rows of other operations.")
        missing, self._missing = self._missing, {}
        for table, by_key in missing.items():
            self._insert(table, [by_key[key] for key in sorted(by_key)], if_missing=True)
        added, self._added = self._added, {}
        for table, rows in added.items():
            self._insert(table, rows)

    def _insert(self, table: Table, rows: Sequence[dict[str, Any]], *, if_missing: bool = False) -> None:
        text, names, json_names = insert_statement(table, self.conn.dialect, if_missing=if_missing)
        for row in rows:
            row.update((name, msgspec.json.encode(row[name])) for name in json_names if row.get(name) is not None)
        insert_rows(self.conn, text, [tuple(map(row.get, names)) for row in rows])


Operation = Callable[[Tx], Any]
RunGroup = Callable[[Callable[[Tx], list[Any]]], Awaitable[list[Any]]]


class Pending(NamedTuple):
    """An operation that waits for a transaction."""

    operation: Operation
    """The function to run in the transaction."""
    done: asyncio.Future[Any]
    """The future of its result."""
    is_deferred: bool = False
    """True to run it again if the database was unavailable."""
    is_repeated: bool = False
    """True if it has been run before, and may have been committed."""
    lock_key: str | None = None
    """The row for whose lock it waits, in an order that all processes share."""


class Writer:
    """A queue of operations that are committed in groups.

    An operation that raises a SignoffError must do so before it writes; it fails alone. After any other error the group
    is rolled back, and its halves run separately, until only the faulty operation fails. So an operation may run more
    than once. An operation whose caller was cancelled before it runs is skipped.

    `run_group` runs a function in a transaction and commits it. It raises what the function raises, or a SignoffError
    if the database is at fault: then all operations of the group fail with it, except for deferred ones.
    """

    def __init__(self, run_group: RunGroup, *, waiting_limit: int, group_limit: int, timeout_seconds: float) -> None:
        self._run_group = run_group
        self._group_limit = group_limit
        self._group_size = group_limit
        self._timeout_seconds = timeout_seconds
        self._waiting = asyncio.Queue[Pending](waiting_limit)
        self._deferred_slots = asyncio.Semaphore(MAX_DEFERRED)
        self._is_due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._repeats = dict[asyncio.TimerHandle, Pending]()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Start the task that commits groups."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def write(self, operation: Callable[[Tx], T], *, lock_key: str | None = None) -> T:
        """Run `operation` and return its result when it is committed. Raises Overloaded if that takes too long."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await (await self.enqueue(operation, lock_key=lock_key))
        except TimeoutError:
            raise Overloaded("The database did not commit the write in time; try again later.") from None

    async def enqueue(self, operation: Callable[[Tx], T], *, lock_key: str | None = None) -> asyncio.Future[T]:
        """Queue `operation` when there is room, and return a future of its result. Raises Overloaded if closed."""
        waiting = Pending(operation, self._new_future(), lock_key=lock_key)
        await self._waiting.put(waiting)
        self._is_due.set()
        return waiting.done

    async def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> asyncio.Future[T]:
        """Queue `operation` for the next group, which begins `at_once`, or else within about GATHER_SECONDS.

        While the database is unavailable, it is run again until it is committed. So it may have been committed before:
        then it must fail, or change nothing. Return a future of its result. Raises Overloaded if closed, or if
        MAX_DEFERRED operations are deferred for too long.
        """
        waiting = Pending(operation, self._new_future(), is_deferred=True)
        if self._deferred_slots.locked():
            await self._wait_for_slot()
        else:  # the usual case, without the cost of a timeout
            await self._deferred_slots.acquire()
        waiting.done.add_done_callback(self._release_slot)
        try:
            self._check_open()  # it may have been closed while this call waited
            if self._waiting.full():
                await self._waiting.put(waiting)
            else:
                self._waiting.put_nowait(waiting)
        except BaseException:
            waiting.done.cancel()
            raise
        self._schedule(at_once=at_once)
        return waiting.done

    async def close(self) -> None:
        """Accept no more operations, and commit those that wait. Those that the database does not take fail."""
        self._closed = True
        for timer, waiting in self._repeats.items():
            timer.cancel()
            if self._waiting.full():
                _set_result(waiting.done, Overloaded("The database was closed."))
            else:
                self._waiting.put_nowait(waiting)
        self._repeats.clear()
        if self._task is not None and not self._task.done():
            self._is_due.set()
            await asyncio.wait([self._task])

    def _check_open(self) -> None:
        if self._closed:
            raise Overloaded("The database was closed.")

    def _new_future(self) -> asyncio.Future[Any]:
        self._check_open()
        return asyncio.get_running_loop().create_future()

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._deferred_slots.acquire()
        except TimeoutError:
            raise Overloaded("Too many finished calls wait to be written to the database; try again later.") from None

    def _schedule(self, *, at_once: bool) -> None:
        """Begin the next group in GATHER_SECONDS; or now, also if it is full, or if a busy loop delays the timer."""
        loop = asyncio.get_running_loop()
        if at_once or self._waiting.qsize() >= self._group_limit:
            self._is_due.set()
        elif self._timer is None:
            self._timer = loop.call_later(GATHER_SECONDS, self._is_due.set)
        elif self._timer.when() <= loop.time():
            self._is_due.set()

    def _release_slot(self, _: object) -> None:
        self._deferred_slots.release()

    async def _run(self) -> None:
        while not self._closed or not self._waiting.empty():
            await self._is_due.wait()
            self._is_due.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            group = self._next_group()
            try:
                await self._flush(group)
            except Exception as error:  # noqa: BLE001 -- the next writes must go on, for example if a log raises
                for waiting in group:
                    _set_result(waiting.done, error)
            if self._closed:
                await asyncio.sleep(0)  # let callers that waited for a full queue put their operations
                self._is_due.set()

    def _next_group(self) -> list[Pending]:
        """Return the operations that wait, up to a limit."""
        group = list[Pending]()
        while len(group) < self._group_size and not self._waiting.empty():
            group.append(self._waiting.get_nowait())
        if not self._waiting.empty():
            self._is_due.set()
        return group

    async def _flush(self, group: Sequence[Pending]) -> None:
        """Commit the operations as one group, and set their results."""
        pending = [waiting for waiting in group if not waiting.done.cancelled()]
        pending.sort(key=lambda waiting: (waiting.lock_key is None, waiting.lock_key))
        results = await self._commit(pending) if pending else []
        self._adapt_group_size(pending, results)
        faults = list[Exception]()
        for waiting, result in zip(pending, results, strict=True):
            if waiting.is_deferred and isinstance(result, Overloaded) and not self._closed:
                self._repeat(waiting)
            elif waiting.is_repeated and isinstance(result, IntegrityError):
                _set_result(waiting.done, None)  # it was committed before, although its result was lost
            else:
                _set_result(waiting.done, result)
                if isinstance(result, Exception) and not isinstance(result, SignoffError):
                    faults.append(result)
        for error in faults:
            log.error("database_write_failed", error=repr(error))

    def _adapt_group_size(self, group: Sequence[Pending], results: Sequence[Any]) -> None:
        """Make groups smaller while repeated ones fail, as they may be too large for the time limits of the database.

        Make them larger again when the database takes them.
        """
        failed = [waiting for waiting, result in zip(group, results, strict=True) if isinstance(result, Overloaded)]
        if any(waiting.is_repeated for waiting in failed):
            self._group_size = max(1, len(group) // 2)
        elif group and not failed:
            self._group_size = min(self._group_limit, 2 * self._group_size)

    def _repeat(self, waiting: Pending) -> None:
        """Queue an operation again after RETRY_SECONDS."""

        def queue() -> None:
            del self._repeats[timer]
            if self._waiting.full():
                self._repeat(waiting)
            else:
                self._waiting.put_nowait(waiting)
                self._is_due.set()

        waiting = waiting._replace(is_repeated=True)
        timer = asyncio.get_running_loop().call_later(RETRY_SECONDS, queue)
        self._repeats[timer] = waiting

    async def _commit(self, group: Sequence[Pending]) -> list[Any]:
        try:
            return await self._run_group(lambda tx: _run_all(tx, group))
        except SignoffError as error:
            return [error] * len(group)
        except Exception as error:  # noqa: BLE001 -- each operation gets its own result
            if len(group) == 1:
                return [error]
            log.debug("write_group_split", error=repr(error), operations=len(group))
        half = len(group) // 2
        return [*await self._commit(group[:half]), *await self._commit(group[half:])]


def _run_all(tx: Tx, group: Sequence[Pending]) -> list[Any]:
    results = [None if waiting.done.cancelled() else _run_one(tx, waiting.operation) for waiting in group]
    tx.flush()
    tx.run_at_end()
    tx.flush()
    tx.flush_sums()
    return results


def _run_one(tx: Tx, operation: Operation) -> Any:
    try:
        return operation(tx)
    except SignoffError as error:
        return error


def _set_result(done: asyncio.Future[Any], result: Any) -> None:
    """Set the result of an operation, or its error, unless its caller has left."""
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
    else:
        done.set_result(result)


@cache
def _shard() -> int:
    """Return the shard of this process. Processes in containers often have the same id."""
    return zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % SHARDS


def _key_of(shard: int, group: tuple[Any, ...]) -> str:
    return f"{shard}:{fingerprint(msgspec.json.encode(group))}"
