"""Failed sign-ins by e-mail address and by client, in SQL."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from signoff.core.sign_in import SignInCount, SignInDenial, SignInLimit, denial_of, with_attempt, without_attempt
from signoff.errors import write_timed_out
from signoff.stores.database import WRITE_TIMEOUT_SECONDS, Database
from signoff.stores.people_schema import sign_in_failures as failures
from signoff.stores.statements import insert_into
from signoff.stores.transaction import Tx
from signoff.stores.writer import T

PURGED_ROWS = 20
_COUNT = (failures.c.failures, failures.c.blocked_until, failures.c.expires_at)


class SqlSignIns:
    """Failed sign-ins in a SQL database; see `accounts.SignIns`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, limits: Sequence[SignInLimit]) -> SignInDenial | None:
        """See `accounts.SignIns`."""
        denial = await self._database.read(lambda conn, now: _longest(limits, _counts(conn, limits), now()))
        return denial or await self._write(lambda tx: _begin(tx, limits))  # a refused attempt costs no write

    async def succeed(self, email: SignInLimit, client: SignInLimit) -> None:
        """See `accounts.SignIns`."""

        def forget(tx: Tx) -> None:
            count = _counts(tx.conn, [client], is_locked=True).get(client.key)
            if count is not None:
                _update(tx, client, without_attempt(count))
            tx.conn.execute(sa.delete(failures).where(failures.c.key == email.key))

        await self._write(forget)

    async def _write(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a transaction of its own: in a group, its locks would have no fixed order."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                return await self._database.write_alone(operation)
        except TimeoutError:
            raise write_timed_out() from None


def _begin(tx: Tx, limits: Sequence[SignInLimit]) -> SignInDenial | None:
    for limit in sorted(limits, key=lambda limit: limit.key):  # a row that is not there cannot be locked
        row = {"key": limit.key, "failures": 0, "blocked_until": 0, "expires_at": tx.now + 1}
        tx.conn.execute(insert_into(failures, tx.conn.dialect.name).values(row).on_conflict_do_nothing())
    counts = _counts(tx.conn, limits, is_locked=True)
    denial = _longest(limits, counts, tx.now)
    if denial is None:
        for limit in limits:
            _update(tx, limit, with_attempt(limit, counts.get(limit.key, SignInCount()), tx.now))
    _purge(tx)  # last, so that it waits for no row while it holds others
    return denial


def _purge(tx: Tx) -> None:
    """Delete up to PURGED_ROWS expired rows, which are more than an attempt adds."""
    expired = sa.select(failures.c.key).where(failures.c.expires_at <= tx.now).limit(PURGED_ROWS)
    keys = tx.conn.execute(expired.with_for_update(skip_locked=True)).scalars().all()
    tx.conn.execute(sa.delete(failures).where(failures.c.key.in_(keys)))


def _counts(conn: sa.Connection, limits: Iterable[SignInLimit], *, is_locked: bool = False) -> dict[str, SignInCount]:
    """Return the counts by key; lock their rows, in the order of their keys, if `is_locked`."""
    keys = [limit.key for limit in limits]
    query = sa.select(failures.c.key, *_COUNT).where(failures.c.key.in_(keys)).order_by(failures.c.key)
    rows = conn.execute(query.with_for_update() if is_locked else query).all()
    return {
        row.key: SignInCount(failures=row.failures, blocked_until=row.blocked_until, expires_at=row.expires_at)
        for row in rows
    }


def _update(tx: Tx, limit: SignInLimit, count: SignInCount) -> None:
    values = {"failures": count.failures, "blocked_until": count.blocked_until, "expires_at": count.expires_at}
    tx.conn.execute(sa.update(failures).where(failures.c.key == limit.key).values(values))


def _longest(limits: Sequence[SignInLimit], counts: dict[str, SignInCount], now: int) -> SignInDenial | None:
    denials = (denial_of(limit, counts.get(limit.key, SignInCount()), now) for limit in limits)
    return max((denial for denial in denials if denial), key=lambda denial: denial.seconds, default=None)
