"""Interface of a database for the SQL adapters: reads, grouped writes, and change notifications."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.store import Listener
from signoff.stores.clock import now_us
from signoff.stores.transaction import Tx
from signoff.stores.writer import RowUpdate

T = TypeVar("T")
Read = Callable[[Connection, Callable[[], int]], T]
"""A function of a connection and of the database's clock, in microseconds since 1970."""

# Maximum numbers of operations that wait, and of operations in one transaction.
WAITING_LIMIT = 10_000
GROUP_LIMIT = 500
WRITE_TIMEOUT_SECONDS = 30.0
_NOW = sa.select(now_us())


class Database(Protocol):
    """A database. The functions that it runs get a synchronous connection of SQLAlchemy, and may run in a thread."""

    async def start(self) -> None:
        """Connect, and start to write and to listen. Raises SchemaOutdated, and Overloaded if it does not answer."""
        ...

    async def change_schema(self, step: Callable[[Connection], None]) -> None:
        """Run `step` in one transaction that may change the schema; call it before `start`.

        Other processes wait. If the tables are in use for long, the transaction is rolled back and begins again, so
        that other processes go on in between. Raises Overloaded if they are in use all the time.
        """
        ...

    async def read(self, function: Read[T]) -> T:
        """Run `function(connection, now)` and return its result; `now()` queries the database's time.

        The function may run more than once. Raises Overloaded if the database does not answer in time.
        """
        ...

    def read_at_once(self, query: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]] | None:
        """Return the rows of a query of some microseconds, which blocks the event loop; never raise.

        Return None if the database cannot answer without waiting. `query` is SQL with `?` for each of `parameters`.
        """
        ...

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on a snapshot of the present state and return its result. It blocks no other transaction."""
        ...

    async def write(self, operation: Callable[[Tx], T] | RowUpdate, *, lock_key: str | None = None) -> T:
        """Run `operation` and return its result when it is committed, together with others that are waiting.

        An operation that waits for the lock of one row, which other processes lock too, names it by `lock_key`. In a
        transaction these operations run in the order of their keys, before all others: so no two processes wait for
        each other.
        See `writer.Writer` for what an operation may do. Raises Overloaded after WRITE_TIMEOUT_SECONDS, and if the
        database fails; the operation may have been committed all the same.
        """
        ...

    async def write_lease(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation`, which gives out a lease, as `write` does, but together with operations of this kind alone.

        So it waits for no commit of others. It must not wait for locks. A crash of the database server may undo it,
        with all that it has changed; what depends on the lease is committed later, so it is lost only with the lease.
        """
        ...

    def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> Awaitable[asyncio.Future[T]]:
        """Queue `operation` for a transaction that begins some milliseconds later, and return a future of its result.

        With `at_once`, the transaction begins as soon as it can. While the database is unavailable, the operation is
        run again until it is committed; it may have been committed before. Raises Overloaded if too many operations
        are deferred for longer than WRITE_TIMEOUT_SECONDS, or if the database was closed.
        """
        ...

    async def write_alone(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` as `write` does, but in a transaction of its own, whose locks delay no other write.

        It is for the counters of limits, which all processes update all the time. The call may take long. If it
        raises Overloaded, the operation was not committed, or the database did not tell within an hour whether it was.
        """
        ...

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        ...

    async def close(self) -> None:
        """Write what is queued, notify other processes of it, and disconnect."""
        ...


def clock_of(conn: Connection) -> Callable[[], int]:
    """Return a function that queries the database's time, in microseconds since 1970, UTC."""
    return lambda: conn.execute(_NOW).scalar_one()
