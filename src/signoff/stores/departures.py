"""Departures of callers, in SQL: jobs whose caller left before the answer came, or waits under a lease."""

from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from signoff.core.job import STATUSES, TERMINAL, Job
from signoff.core.times import DAY_US, SECOND_US
from signoff.stores.database import Database
from signoff.stores.schema import departures, jobs
from signoff.stores.statements import insert_into
from signoff.stores.transaction import Tx
from signoff.stores.transitions import EVERY_COLUMN, job_of

LIFETIME_US = DAY_US
PURGED_ROWS = 20


class SqlDepartures:
    """Departures of callers in a SQL database; see `records.Departures`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: Job) -> None:
        """See `records.Departures`."""

        def add(tx: Tx) -> None:
            _purge(tx)
            _put(tx, [job], tx.now)

        await self._database.write(add)

    async def renew(self, jobs: Sequence[Job], lease_seconds: float) -> None:
        """See `records.Departures`."""
        await self._database.write(lambda tx: _put(tx, jobs, tx.now + round(lease_seconds * SECOND_US)))

    async def remove(self, job_id: str) -> None:
        """See `records.Departures`."""
        await self._database.write(lambda tx: tx.conn.execute(_DELETE, {"job": job_id}))

    async def left_at(self, job_ids: Sequence[str]) -> dict[str, int]:
        """See `records.Departures`."""

        def read(conn: sa.Connection, now: Callable[[], int]) -> dict[str, int]:
            query = sa.select(departures.c.job_id, departures.c.left_at)
            query = query.where(departures.c.job_id.in_(job_ids), departures.c.left_at <= now())
            return {row.job_id: row.left_at for row in conn.execute(query)}

        return await self._database.read(read) if job_ids else {}

    async def take(self, job: Job, *, ended_within_seconds: float) -> Job | None:
        """See `records.Departures`."""
        key = _key_of(job)

        def take(tx: Tx) -> Job | None:
            tx.flush()
            since = tx.now - round(ended_within_seconds * SECOND_US)
            row = tx.conn.execute(_NEWEST, key | {"since": since, "now": tx.now}).one_or_none()
            if row is None:
                return None
            departed = job_of(row)
            tx.conn.execute(_DELETE, {"job": departed.id})
            return departed

        # The first query is all that most calls need, and costs no write.
        is_known = await self._database.read(lambda conn, _: conn.execute(_ANY, key).first() is not None)
        return await self._database.write(take) if is_known else None


def _key_of(job: Job) -> dict[str, object]:
    return {"user_id": job.user_id, "token_id": job.token_id, "fingerprint": job.fingerprint}


def _put(tx: Tx, jobs: Iterable[Job], left_at: int) -> None:
    """Record that the callers of `jobs` leave at `left_at`; in the order of ids, so that processes cannot deadlock."""
    rows = [{"job_id": job.id, "left_at": left_at, **_key_of(job)} for job in sorted(jobs, key=lambda job: job.id)]
    statement = insert_into(departures, tx.conn.dialect.name)
    changes = {"left_at": statement.excluded.left_at}
    tx.conn.execute(statement.on_conflict_do_update(index_elements=["job_id"], set_=changes), rows)


def _purge(tx: Tx) -> None:
    """Delete up to PURGED_ROWS old departures, which are more than a call adds."""
    old = sa.select(departures.c.job_id).where(departures.c.left_at < tx.now - LIFETIME_US).limit(PURGED_ROWS)
    ids = tx.conn.execute(old.with_for_update(skip_locked=True)).scalars().all()
    if ids:
        tx.conn.execute(sa.delete(departures).where(departures.c.job_id.in_(ids)))


_OF_REQUEST = sa.and_(*(departures.c[name] == sa.bindparam(name) for name in ("user_id", "token_id", "fingerprint")))
_ANY = sa.select(departures.c.job_id).where(_OF_REQUEST).limit(1)
_IS_RECENT = sa.or_(
    jobs.c.status.in_([status for status in STATUSES if status not in TERMINAL]),
    jobs.c.updated_at >= sa.bindparam("since", type_=sa.BigInteger),
)
# Of concurrent calls, the one that locks the row gets the job, and the others do not wait for it.
_NEWEST = (
    sa.select(*EVERY_COLUMN)
    .join_from(departures, jobs, jobs.c.id == departures.c.job_id)
    .where(_OF_REQUEST, departures.c.left_at <= sa.bindparam("now", type_=sa.BigInteger), _IS_RECENT)
    .order_by(departures.c.job_id.desc())
    .limit(1)
    .with_for_update(of=departures, skip_locked=True)
)
_DELETE = sa.delete(departures).where(departures.c.job_id == sa.bindparam("job", type_=sa.Text))
