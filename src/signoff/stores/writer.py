"""Group commit without a timer: a flush starts when the last one ends, and takes everything that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Dialect, Table, bindparam, insert
from sqlalchemy.exc import SQLAlchemyError

from signoff.errors import Overloaded, SignoffError
from signoff.store import Topic
from signoff.stores.json_column import JsonColumn

T = TypeVar("T")
log = structlog.get_logger()


class Tx(msgspec.Struct):
    """One transaction: its connection, the database's time at its start, and the news to tell once it is committed."""

    conn: Connection
    now: int
    changes: list[tuple[Topic, str]] = []
    _added: dict[Table, list[dict[str, Any]]] = {}

    def add(self, table: Table, row: dict[str, Any]) -> None:
        """Inserts a row, together with those of the whole group: at its end, or when somebody calls `flush`."""
        self._added.setdefault(table, []).append(row)

    def flush(self) -> None:
        """Inserts what was added so far."""
        added, self._added = self._added, {}
        for table, rows in added.items():
            text, names, packed = _insert(table, self.conn.dialect)
            for row in rows:
                row.update((name, msgspec.json.encode(row[name])) for name in packed if row.get(name) is not None)
            self.conn.exec_driver_sql(text, [tuple(map(row.get, names)) for row in rows])


Operation = Callable[[Tx], Any]
Waiting = tuple[Operation, "asyncio.Future[Any]"]
RunGroup = Callable[[Callable[[Tx], list[Any]]], Awaitable[list[Any]]]


class Writer:
    """Collects operations and commits them in groups.

    An operation that raises a SignoffError must do so before it writes; it fails alone. After any other error the
    group is rolled back and run again in halves, until only the culprit fails: so an operation may run more than once.
    One whose caller has left before it runs is left out.

    `run_group` runs a function in a transaction and commits it. It raises what the function raises, or a SignoffError
    when it is the database that cannot: that is everybody's error, and nothing is run again.
    """

    def __init__(self, run_group: RunGroup, *, waiting_limit: int, group_limit: int, timeout_seconds: float) -> None:
        self._run_group = run_group
        self._group_limit = group_limit
        self._timeout_seconds = timeout_seconds
        self._waiting = asyncio.Queue[Waiting](waiting_limit)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begins to flush."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """The result of `operation`, committed. Raises Overloaded when that takes too long."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await (await self.enqueue(operation))
        except TimeoutError:
            raise Overloaded("The database did not take the write in time.") from None

    async def enqueue(self, operation: Callable[[Tx], T]) -> asyncio.Future[T]:
        """A future of the result; waits only while too much is waiting already. Raises Overloaded once closed."""
        if self._closed:
            raise Overloaded("The database was closed.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._waiting.put((operation, done))
        return done

    async def close(self) -> None:
        """Takes no more, and flushes what waits."""
        self._closed = True
        if self._task is not None and not self._task.done():
            await self._waiting.put(_nothing())  # wakes it up
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while not self._closed or not self._waiting.empty():
            await self._flush([await self._waiting.get()])
            await asyncio.sleep(0)  # whoever waited for room comes in

    async def _flush(self, group: list[Waiting]) -> None:
        while len(group) < self._group_limit and not self._waiting.empty():
            group.append(self._waiting.get_nowait())
        wanted = [(operation, done) for operation, done in group if not done.cancelled()]
        if wanted:
            _tell(wanted, await self._results(wanted))

    async def _results(self, group: Sequence[Waiting]) -> list[Any]:
        try:
            return await self._run_group(lambda tx: _all(tx, group))
        except SignoffError as error:
            return [error] * len(group)
        except Exception as error:  # noqa: BLE001 -- whatever it was, each operation gets its own result
            if len(group) == 1:
                return [error]
            log.debug("a group failed; its halves run one by one", error=repr(error), operations=len(group))
        half = len(group) // 2
        return [*await self._results(group[:half]), *await self._results(group[half:])]


def _nothing() -> Waiting:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.cancel()
    return lambda _: None, done


def _all(tx: Tx, group: Sequence[Waiting]) -> list[Any]:
    results = [None if done.cancelled() else _one(tx, operation) for operation, done in group]
    tx.flush()
    return results


def _one(tx: Tx, operation: Operation) -> Any:
    try:
        return operation(tx)
    except SignoffError as error:
        return error


def _tell(group: Sequence[Waiting], results: Sequence[Any]) -> None:
    for (_, done), result in zip(group, results, strict=True):
        if done.cancelled():
            continue
        if isinstance(result, SQLAlchemyError):
            log.error("a write failed", error=str(result))
        if isinstance(result, BaseException):
            done.set_exception(result)
        else:
            done.set_result(result)


@lru_cache(maxsize=64)
def _insert(table: Table, dialect: Dialect) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The statement for whole rows, the columns in its order, and those that are packed.

    SQLAlchemy would look at each value of each row; that costs as much as all else that a row takes.
    """
    statement = insert(table).values({column.name: bindparam(column.name) for column in table.c})
    compiled = statement.compile(dialect=dialect)
    names = tuple(compiled.positiontup or ())
    return str(compiled), names, tuple(name for name in names if isinstance(table.c[name].type, JsonColumn))
