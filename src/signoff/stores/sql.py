"""The store in a SQL database: PostgreSQL, or an embedded SQLite file."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from signoff.cache import CacheBounds
from signoff.core.audit import AuditChange
from signoff.core.postgres_address import parse_postgres_address
from signoff.errors import Overloaded
from signoff.infra.actor import current_actor
from signoff.infra.vault import Vault
from signoff.store import Listener, Topic
from signoff.stores.archive import ArchiveWriter, BadBackup, Manifest, write_archive
from signoff.stores.audit import SqlAudit, record
from signoff.stores.backup import fill, save
from signoff.stores.batches import SqlBatches
from signoff.stores.budgets import SqlBudgets
from signoff.stores.cache import SqlCache
from signoff.stores.catalog import SqlCatalog
from signoff.stores.database import Database
from signoff.stores.deliveries import SqlDeliveries
from signoff.stores.departures import SqlDepartures
from signoff.stores.erasures import SqlErasures
from signoff.stores.files import SqlFiles
from signoff.stores.jobs import SqlJobs
from signoff.stores.library import SqlLibrary
from signoff.stores.limits import SqlLimits
from signoff.stores.migrations import MIN_COMPATIBLE, check_schema, migrate_schema
from signoff.stores.model_logs import SqlModelLogs
from signoff.stores.objects import SqlUpstreamObjects
from signoff.stores.people import SqlPeople
from signoff.stores.policies import SqlPolicies
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.receipts import SqlReceipts
from signoff.stores.review_queues import SqlReviewQueues
from signoff.stores.reviews import SqlReviews
from signoff.stores.runs import SqlRuns
from signoff.stores.saved_views import SqlSavedViews
from signoff.stores.schema import versions
from signoff.stores.secrets import SqlSecrets
from signoff.stores.sign_ins import SqlSignIns
from signoff.stores.streams import SqlStreams
from signoff.stores.transaction import Tx
from signoff.stores.usage import SqlUsageRecords
from signoff.stores.versions import bump

SaveFiles = Callable[[ArchiveWriter], Awaitable[None]]
READY_SECONDS = 2.0
# Anybody may ask whether the server is ready, so that must not cost a write each time.
WRITABLE_SECONDS = 1.0
MIN_FREE_BYTES = 2**20


class SqlStore:
    """A store in a SQL database; see `store.Store`.

    Raises ValueError for a URL with another scheme.

    Args:
        url: `sqlite:///PATH` or `postgresql://…`.
        vault: The vault that seals the key of receipts; without it, no verdict can take effect.
    """

    def __init__(self, url: str, vault: Vault | None = None) -> None:
        self._database = _make_database(url, None if vault is None else ReceiptSigner(vault))
        self._folder = _folder_of(url)
        self._writable_until = 0.0
        self.jobs = SqlJobs(self._database)
        self.runs = SqlRuns(self._database)
        self.reviews = SqlReviews(self._database)
        self.review_queues = SqlReviewQueues(self._database)
        self.objects = SqlUpstreamObjects(self._database)
        self.deliveries = SqlDeliveries(self._database)
        self.departures = SqlDepartures(self._database)
        self.receipts = SqlReceipts(self._database)
        self.erasures = SqlErasures(self._database)
        self.people = SqlPeople(self._database)
        self.sign_ins = SqlSignIns(self._database)
        self.catalog = SqlCatalog(self._database)
        self.usage = SqlUsageRecords(self._database)
        self.library = SqlLibrary(self._database)
        self.limits = SqlLimits(self._database)
        self.views = SqlSavedViews(self._database)
        self.streams = SqlStreams(self._database)
        self.secrets = SqlSecrets(self._database)
        self.model_logs = SqlModelLogs(self._database)
        self.policies = SqlPolicies(self._database)
        self.budgets = SqlBudgets(self._database)
        self.files = SqlFiles(self._database)
        self.batches = SqlBatches(self._database)
        self.audit = SqlAudit(self._database)

    def cache(self, bounds: CacheBounds) -> SqlCache:
        """Return a response cache in a table of this database. It is open while the store is."""
        return SqlCache(self._database, bounds)

    async def start(self) -> None:
        """See `store.Store`."""
        await self._database.start()

    async def migrate(self) -> None:
        """See `store.Store`."""
        await self._database.change_schema(migrate_schema)

    async def backup(self, path: Path, *, key: bytes | None = None, save_files: SaveFiles | None = None) -> Manifest:
        """Write a snapshot of all data to the new file `path`, with the contents of the vault's key file in `key`.

        `save_files` adds the contents of files to the archive. Other processes may go on.
        Raises BadBackup, SchemaOutdated.
        """
        with write_archive(path) as archive:
            manifest = await self._database.snapshot(lambda conn: save(conn, archive, key=key))
            if save_files is not None:
                await save_files(archive)
            archive.finish(manifest)
            return manifest

    async def restore(self, path: Path, manifest: Manifest, *, at_end: Callable[[], None] = lambda: None) -> None:
        """Fill an empty database from the backup `path`, whose `manifest` `archive.check` has returned.

        All is one transaction; `at_end` is called before its commit, and undoes it by an exception. Raises BadBackup.
        """
        try:
            await self._database.change_schema(lambda conn: fill(conn, path, manifest, at_end=at_end))
        except DBAPIError as error:
            raise BadBackup(f"The database rejected the rows of {path}: {str(error.orig).splitlines()[0]}") from error
        except OverflowError as error:  # of the driver of SQLite
            raise BadBackup(f"A row of {path} has a number that is too large ({error}); use another backup.") from error

    async def is_ready(self) -> bool:
        """See `store.Store`."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.versions()
                await self._check_writable()
        except Exception:  # noqa: BLE001 -- any failure means that it is not ready
            return False
        return True

    async def check_schema(self) -> None:
        """See `store.Store`."""
        await self._database.read(lambda conn, _: check_schema(conn))

    async def _check_writable(self) -> None:
        """Write to the database, unless that was done a moment ago. Raises Overloaded."""
        now = asyncio.get_running_loop().time()
        if now < self._writable_until:
            return
        row = versions.c.topic == "models"
        # PostgreSQL refuses a lock, too, if it can only be read, and an update would leave a dead row each time.
        statement: sa.Executable = sa.select(versions.c.topic).where(row).with_for_update()
        if self._folder is not None:  # SQLite
            # On a full disk, the few pages of this write would still fit into the write-ahead log.
            if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
                raise Overloaded("The disk of the database is full.")
            statement = sa.update(versions).where(row).values(version=versions.c.version)

        def write(tx: Tx) -> None:
            tx.conn.execute(statement)

        await self._database.write(write)
        self._writable_until = now + WRITABLE_SECONDS

    async def versions(self) -> dict[str, int]:
        """See `store.Store`."""
        # The row of the receipts is only their lock, and that of the schema no version.
        is_cached = versions.c.topic.not_in(("receipts", MIN_COMPATIBLE))
        query = sa.select(versions.c.topic, versions.c.version).where(is_cached)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return {row.topic: row.version for row in rows}

    async def changed(self, topic: Topic, change: AuditChange | None = None) -> None:
        """See `store.Store`."""
        actor = current_actor()

        def announce(tx: Tx) -> None:
            bump(tx, topic)
            if change is not None:
                record(tx, actor, change)

        await self._database.write(announce)

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._database.listen(listener)

    async def close(self) -> None:
        """See `store.Store`."""
        await self._database.close()


def _folder_of(address: str) -> Path | None:
    """Return the folder of the file of a SQLite database; None for a database server."""
    is_file = address.startswith("sqlite:")
    return Path(make_url(address).database or "").absolute().parent if is_file else None


def _make_database(address: str, signer: ReceiptSigner | None) -> Database:
    if address.startswith("sqlite:"):
        if not (path := make_url(address).database):
            raise ValueError("The URL of a SQLite database must be sqlite:///PATH.")
        from signoff.stores.sqlite import Sqlite

        return Sqlite(Path(path).absolute(), signer=signer)
    from signoff.stores.postgres import Postgres

    return Postgres(parse_postgres_address(address), signer=signer)
