"""In-memory store: it implements the interface in `store.py` and passes the contract tests of all stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from signoff.errors import Conflict, NotFound, Overloaded
from signoff.store import Listener, Topic
from simulation.catalog import MemoryCatalog, MemoryModelLogs, MemorySecrets
from simulation.deliveries import MemoryDeliveries
from simulation.jobs import MemoryJobs
from simulation.library import MemoryLibrary
from simulation.people import MemoryPeople
from simulation.quotas import MemoryQuotas
from simulation.runs import MemoryRuns
from simulation.streams import MemoryStreams
from simulation.tables import Operation, Tables, Way, bump
from simulation.usage import MemoryUsageRecords


class MemoryStore:
    """In-memory implementation of `store.Store`. Several may share their tables, as processes share a database."""

    def __init__(self, tables: Tables, way: Way) -> None:
        self.tables = tables
        self._way = way
        self.jobs = MemoryJobs(tables, way)
        self.runs = MemoryRuns(tables, way, self.jobs)
        self.deliveries = MemoryDeliveries(tables, way)
        self.people = MemoryPeople(tables, way)
        self.catalog = MemoryCatalog(tables, way)
        self.usage = MemoryUsageRecords(tables, way)
        self.library = MemoryLibrary(tables, way)
        self.quotas = MemoryQuotas(tables, way)
        self.streams = MemoryStreams(tables, way)
        self.secrets = MemorySecrets(tables, way)
        self.model_logs = MemoryModelLogs(tables, way)

    async def start(self) -> None:
        """Do nothing."""

    async def migrate(self) -> None:
        """Do nothing."""

    async def ready(self) -> bool:
        try:
            await self.versions()
        except Overloaded:
            return False
        return True

    async def versions(self) -> dict[str, int]:
        return await self._way.send(lambda _: dict(self.tables.versions), writes=False)

    async def changed(self, topic: Topic) -> None:
        await self._way.send(lambda tx: bump(self.tables, tx, topic), writes=True)

    def listen(self, listener: Listener) -> None:
        self._way.listen(listener)

    async def close(self) -> None:
        self._way.close()


class Near:
    """Connection to tables in the same process, without a network."""

    def __init__(self, tables: Tables, clock: Callable[[], int]) -> None:
        self._tables = tables
        self._clock = clock
        self._closed = False

    def send(self, operation: Operation, *, writes: bool) -> asyncio.Future[Any]:
        """See `Connection`."""
        if self._closed:
            raise Overloaded("The store was closed.")
        answer = asyncio.get_running_loop().create_future()
        try:
            answer.set_result(self._tables.run(operation, self._clock()))
        except (Conflict, NotFound, sa.exc.IntegrityError) as error:
            answer.set_exception(error)
        return answer

    def listen(self, listener: Listener) -> None:
        """See `Connection`. An error of a listener does not fail the operation."""

        def tell(topic: Topic, name: str) -> None:
            try:
                listener(topic, name)
            except Exception as error:  # noqa: BLE001 -- the transaction is already committed
                asyncio.get_running_loop().call_exception_handler({"message": repr(error)})

        self._tables.listeners.append(tell)

    def close(self) -> None:
        """See `Connection`."""
        self._closed = True
