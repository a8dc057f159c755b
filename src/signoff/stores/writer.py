"""Group commit without a timer: a flush starts when the last one ends, and takes everything that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import SQLAlchemyError

from signoff.errors import Overloaded, SignoffError
from signoff.store import Topic

T = TypeVar("T")
log = structlog.get_logger()


class Tx(msgspec.Struct):
    """One transaction: its connection, the database's time at its start, and the news to tell once it is committed."""

    conn: Connection
    now: int
    news: list[tuple[Topic, str]]


class Rows(msgspec.Struct, Generic[T], frozen=True):
    """An operation that only adds rows; those of a whole group go to the database together.

    `build` gets the transaction's time and gives the operation's result and its rows.
    """

    build: Callable[[int], tuple[T, Sequence[tuple[Table, dict[str, Any]]]]]
    news: Sequence[tuple[Topic, str]] = ()


Operation = Callable[[Tx], Any] | Rows[Any]
RunGroup = Callable[[Callable[[Tx], list[Any]]], Awaitable[list[Any]]]


class Writer:
    """Collects operations and commits them in groups.

    An operation that raises a SignoffError must do so before it writes; it fails alone. Any other error
    rolls the group back, and its operations are run again one by one, so that only the culprit fails.
    """

    def __init__(self, run_group: RunGroup, *, waiting_limit: int, group_limit: int, timeout_seconds: float) -> None:
        self._run_group = run_group
        self._group_limit = group_limit
        self._timeout_seconds = timeout_seconds
        self._waiting = asyncio.Queue[tuple[Operation, asyncio.Future[Any]]](waiting_limit)

    async def write(self, operation: Callable[[Tx], T] | Rows[T]) -> T:
        """The result of `operation`, committed. Raises Overloaded when that takes too long."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await (await self.enqueue(operation))
        except TimeoutError:
            raise Overloaded("The database did not take the write in time.") from None

    async def enqueue(self, operation: Callable[[Tx], T] | Rows[T]) -> asyncio.Future[T]:
        """A future of the result; waits only while too much is waiting already."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._waiting.put((operation, done))
        return done

    async def run(self) -> None:
        """Flushes until cancelled; what waits then is flushed first."""
        try:
            while True:
                await self._flush([await self._waiting.get()])
        finally:
            while not self._waiting.empty():
                await self._flush([])

    async def _flush(self, group: list[tuple[Operation, asyncio.Future[Any]]]) -> None:
        while len(group) < self._group_limit and not self._waiting.empty():
            group.append(self._waiting.get_nowait())
        operations = [operation for operation, _ in group]
        flushing = asyncio.get_running_loop().create_task(self._results(operations))
        try:
            results = await asyncio.shield(flushing)
        except asyncio.CancelledError:
            _tell(group, await flushing)
            raise
        _tell(group, results)

    async def _results(self, operations: list[Operation]) -> list[Any]:
        try:
            return await self._run_group(lambda tx: _all(tx, operations))
        except Exception as error:  # noqa: BLE001 -- whatever it was, each operation gets its own result
            if len(operations) == 1:
                return [error]
            log.debug("a group failed; its operations run one by one", error=repr(error))
            return [result for operation in operations for result in await self._results([operation])]


def _all(tx: Tx, operations: list[Operation]) -> list[Any]:
    """The results of all; the rows of those that only add rows go first, table by table."""
    built: dict[int, Any] = {}
    by_table: dict[Table, list[dict[str, Any]]] = {}
    for number, operation in enumerate(operations):
        if isinstance(operation, Rows):
            built[number], rows = operation.build(tx.now)
            tx.news.extend(operation.news)
            for table, row in rows:
                by_table.setdefault(table, []).append(row)
    for table, rows in by_table.items():
        tx.conn.execute(insert(table), rows)
    return [
        built[number] if isinstance(operation, Rows) else _one(tx, operation)
        for number, operation in enumerate(operations)
    ]


def _one(tx: Tx, operation: Callable[[Tx], Any]) -> Any:
    try:
        return operation(tx)
    except SignoffError as error:
        return error


def _tell(group: list[tuple[Operation, asyncio.Future[Any]]], results: list[Any]) -> None:
    for (_, done), result in zip(group, results, strict=True):
        if done.cancelled():
            continue
        if isinstance(result, SQLAlchemyError):
            log.error("a write failed", error=str(result))
        if isinstance(result, BaseException):
            done.set_exception(result)
        else:
            done.set_result(result)
