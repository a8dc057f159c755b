"""In-memory store: it implements the interface in `store.py` and passes the contract tests of all stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from signoff.core.audit import AuditChange
from signoff.errors import Conflict, NotFound, Overloaded
from signoff.infra.actor import current_actor
from signoff.store import Listener, Topic
from simulation.audit import MemoryAudit
from simulation.batches import MemoryBatches, MemoryFiles
from simulation.budgets import MemoryBudgets
from simulation.catalog import MemoryCatalog, MemoryModelLogs, MemorySecrets
from simulation.deliveries import MemoryDeliveries
from simulation.departures import MemoryDepartures
from simulation.erasures import MemoryErasures
from simulation.jobs import MemoryJobs
from simulation.library import MemoryLibrary
from simulation.limits import MemoryLimits
from simulation.objects import MemoryUpstreamObjects
from simulation.people import MemoryPeople, MemorySignIns
from simulation.policies import MemoryPolicies
from simulation.receipts import MemoryReceipts
from simulation.reviews import MemoryReviewQueues, MemoryReviews
from simulation.runs import MemoryRuns
from simulation.saved_views import MemorySavedViews
from simulation.streams import MemoryStreams
from simulation.tables import Connection, Operation, Tables, Tx, bump, record
from simulation.usage import MemoryUsageRecords


class MemoryStore:
    """In-memory implementation of `store.Store`. Several may share their tables, as processes share a database."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self.tables = tables
        self._connection = connection
        self.jobs = MemoryJobs(tables, connection)
        self.reviews = MemoryReviews(tables, connection, self.jobs)
        self.review_queues = MemoryReviewQueues(tables, connection)
        self.runs = MemoryRuns(tables, connection, self.jobs)
        self.objects = MemoryUpstreamObjects(tables, connection)
        self.deliveries = MemoryDeliveries(tables, connection)
        self.departures = MemoryDepartures(tables, connection)
        self.erasures = MemoryErasures(tables, connection)
        self.receipts = MemoryReceipts(tables, connection)
        self.people = MemoryPeople(tables, connection)
        self.sign_ins = MemorySignIns(tables, connection)
        self.catalog = MemoryCatalog(tables, connection)
        self.usage = MemoryUsageRecords(tables, connection)
        self.library = MemoryLibrary(tables, connection)
        self.limits = MemoryLimits(tables, connection)
        self.views = MemorySavedViews(tables, connection)
        self.streams = MemoryStreams(tables, connection)
        self.secrets = MemorySecrets(tables, connection)
        self.model_logs = MemoryModelLogs(tables, connection)
        self.policies = MemoryPolicies(tables, connection)
        self.budgets = MemoryBudgets(tables, connection)
        self.files = MemoryFiles(tables, connection)
        self.batches = MemoryBatches(tables, connection, self.jobs)
        self.audit = MemoryAudit(tables, connection)

    async def start(self) -> None:
        """Start nothing."""

    async def migrate(self) -> None:
        """Migrate nothing; the tables have no schema."""

    async def check_schema(self) -> None:
        """Check nothing; the tables have no schema."""

    async def is_ready(self) -> bool:
        try:
            await self.versions()
        except Overloaded:
            return False
        return True

    async def versions(self) -> dict[str, int]:
        return await self._connection.send(lambda _: dict(self.tables.versions), writes=False)

    async def changed(self, topic: Topic, change: AuditChange | None = None) -> None:
        actor = current_actor()

        def announce(tx: Tx) -> None:
            bump(self.tables, tx, topic)
            if change is not None:
                record(self.tables, tx, actor, change)

        await self._connection.send(announce, writes=True)

    def listen(self, listener: Listener) -> None:
        self._connection.listen(listener)

    async def close(self) -> None:
        self._connection.close()


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
        future = asyncio.get_running_loop().create_future()
        try:
            future.set_result(self._tables.run(operation, self._clock()))
        except (Conflict, NotFound, sa.exc.IntegrityError) as error:
            future.set_exception(error)
        return future

    def listen(self, listener: Listener) -> None:
        """See `Connection`. An error of a listener does not fail the operation."""

        def notify(topic: Topic, name: str) -> None:
            try:
                listener(topic, name)
            except Exception as error:  # noqa: BLE001 -- the transaction is already committed
                asyncio.get_running_loop().call_exception_handler({"message": repr(error)})

        self._tables.listeners.append(notify)

    def close(self) -> None:
        """See `Connection`."""
        self._closed = True
