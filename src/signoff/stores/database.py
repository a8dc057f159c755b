"""What the statements ask of a database, whichever it is: reads, and grouped writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.store import Listener
from signoff.stores.clock import now_us
from signoff.stores.writer import Tx

T = TypeVar("T")
Read = Callable[[Connection, Callable[[], int]], T]

WAITING_LIMIT = 10_000
GROUP_LIMIT = 500
WRITE_TIMEOUT_SECONDS = 30.0
_NOW = sa.select(now_us())


class Database(Protocol):
    """A database. Functions get a plain connection and run wherever the database likes to run them."""

    async def start(self) -> None: ...
    async def reshape(self, step: Callable[[Connection], None]) -> None:
        """Runs `step` in one transaction, one process at a time, before `start`; the schema may change in it."""
        ...

    async def read(self, function: Read[T]) -> T:
        """The result of `function(connection, now)`; `now()` is the database's time in microseconds."""
        ...

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """The result of `function`, which sees the database as it is now for as long as it runs; nobody waits."""
        ...

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """The result of `operation`, committed together with whatever else was waiting. Raises Overloaded."""
        ...

    async def enqueue(self, operation: Callable[[Tx], T]) -> asyncio.Future[T]:
        """A future of that result."""
        ...

    async def count(self, operation: Callable[[Tx], T]) -> T:
        """Like `write`, but for rows that every process writes all the time: their locks are in nobody else's way. It
        takes its time: when it raises Overloaded, nothing was counted, as far as can be found out in an hour.
        """
        ...

    def listen(self, listener: Listener) -> None: ...
    async def close(self) -> None: ...


def clock_of(conn: Connection) -> Callable[[], int]:
    """The database's time, asked for when it is needed."""
    return lambda: conn.execute(_NOW).scalar_one()
