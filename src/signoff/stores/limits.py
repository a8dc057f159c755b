"""Limits and their counters, in SQL. Operations that arrive during a transaction share the next one."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from signoff.core.audit import change_of
from signoff.core.counters import Counter, expire, with_sums
from signoff.core.limits import (
    Denial,
    Limit,
    Reservation,
    ReservationRequest,
    renew_reservations,
    settle_reservation,
    try_reserve,
)
from signoff.core.refusals import RefusalCount
from signoff.core.times import HOUR_US
from signoff.errors import Overloaded, write_timed_out
from signoff.infra.actor import current_actor
from signoff.stores.audit import delete_one, record
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Database
from signoff.stores.limits_schema import counters, limits, refusal_hours
from signoff.stores.people_schema import users
from signoff.stores.statements import insert_into
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump

T = TypeVar("T")
Counters = Mapping[str, Counter]
# A function of the transaction and the counters that returns the changed counters and a result.
Operation = Callable[[Tx, Counters], tuple[Counters, Any]]


class SqlLimits:
    """Limits in a SQL database, with one row for each counter, locked while it is updated; see `accounts.Limits`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[frozenset[str], Operation, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def all(self) -> list[Limit]:
        """See `accounts.Limits`."""
        query = sa.select(limits.c.limit).order_by(limits.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def put_limit(self, limit: Limit) -> None:
        """See `accounts.Limits`."""
        actor = current_actor()
        delete = sa.delete(limits).where(limits.c.name == limit.name).returning(limits.c.limit)

        def put(tx: Tx) -> None:
            bump(tx, "limits")
            old = tx.conn.execute(delete).scalar_one_or_none()
            record(tx, actor, change_of("limit", limit.name, old, limit))
            tx.conn.execute(sa.insert(limits).values(name=limit.name, limit=limit, updated_at=tx.now))

        await self._database.write(put)

    async def drop_limit(self, name: str) -> bool:
        """See `accounts.Limits`."""
        actor = current_actor()
        delete = sa.delete(limits).where(limits.c.name == name).returning(limits.c.limit)
        old = await self._database.write(lambda tx: delete_one(tx, actor, "limits", "limit", name, delete))
        return old is not None

    async def reserve(self, request: ReservationRequest) -> Reservation | Denial:
        """See `accounts.Limits`."""

        def reserve(tx: Tx, current: Counters) -> tuple[Counters, Reservation | Denial]:
            after, result = try_reserve(current, request, tx.now)
            if isinstance(result, Denial):
                group = (tx.now // HOUR_US * HOUR_US, result.limit.name, result.kind, request.user_id, request.token_id)
                tx.add_to_sum(refusal_hours, group, (1,))
            return after, result

        return await self._count([request], reserve)

    async def settle(self, reservation: Reservation, *, tokens: int = 0, cost: int = 0, was_sent: bool = True) -> None:
        """See `accounts.Limits`."""

        def settle(tx: Tx, current: Counters) -> tuple[Counters, None]:
            after = settle_reservation(current, reservation, tokens=tokens, cost=cost, was_sent=was_sent, now=tx.now)
            return after, None

        # Without a timeout: a retry of an operation whose outcome is not known could count twice.
        await self._enqueue([reservation.request], settle)

    async def renew(self, reservations: Sequence[Reservation], lease_seconds: float) -> None:
        """See `accounts.Limits`."""

        def renew(tx: Tx, current: Counters) -> tuple[Counters, None]:
            return renew_reservations(current, reservations, lease_seconds, tx.now), None

        await self._count([reservation.request for reservation in reservations], renew)

    async def counters(self, names: Sequence[str]) -> dict[str, Counter]:
        """See `accounts.Limits`."""
        query = sa.select(counters.c.name, counters.c.counter).where(counters.c.name.in_(names))

        def read(conn: sa.Connection, now: Callable[[], int]) -> dict[str, Counter]:
            rows = conn.execute(query).all()
            return {row.name: expire(with_sums(row.counter), now()) for row in rows}

        return await self._database.read(read)

    async def refusals(self, since: int, *, user_id: int | None = None, limit: int = 50) -> list[RefusalCount]:
        """See `accounts.Limits`."""
        statement = refusals_statement(since, user_id, limit)
        rows = await self._database.read(lambda conn, _: conn.execute(statement).mappings().all())
        return [RefusalCount(**row) for row in rows]

    async def _count(self, requests: Iterable[ReservationRequest], operation: Operation) -> Any:
        """Run `operation` and return its result once that is committed. Raises Overloaded if it takes too long."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                return await self._enqueue(requests, operation)
        except TimeoutError:
            raise write_timed_out() from None

    def _enqueue(self, requests: Iterable[ReservationRequest], operation: Operation) -> asyncio.Future[Any]:
        """Queue `operation` for the next transaction, and return a future of its result."""
        if len(self._waiting) >= WAITING_LIMIT:
            raise Overloaded("Too many requests wait until their limits are checked; try again later.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        names = frozenset(name for request in requests for name, _ in request.limits)
        self._waiting.append((names, operation, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return done

    async def _run(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP_LIMIT], self._waiting[GROUP_LIMIT:]
            group = [entry for entry in group if not entry[2].done()]
            names = sorted(frozenset[str]().union(*(names for names, _, _ in group)))
            operations = [operation for _, operation, _ in group]
            error: Exception | None = None
            results: list[Any] = [None] * len(group)
            try:
                results = await self._database.write_alone(
                    lambda tx, names=names, group=operations: _apply(tx, names, group)
                )
            except Exception as failure:  # noqa: BLE001 -- passed on to the callers
                error = failure
            for (_, _, done), result in zip(group, results, strict=True):
                if not done.done():
                    done.set_result(result) if error is None else done.set_exception(error)
        self._task = None


def refusals_statement(since: int, user_id: int | None, limit: int) -> sa.Select[*tuple[Any, ...]]:
    """Return a query for the refusals from the hour of `since` on, by limit and user, the most frequent first."""
    of = refusal_hours.c
    total = sa.cast(sa.func.sum(of.refused), sa.BigInteger)
    conditions = [of.hour >= since // HOUR_US * HOUR_US, *([] if user_id is None else [of.user_id == user_id])]
    return (
        sa.select(
            of.limit_name,
            of.kind,
            users.c.email,
            of.token_id,
            total.label("refused"),
            sa.func.max(of.hour).label("hour"),
        )
        .select_from(refusal_hours.outerjoin(users, users.c.id == of.user_id))
        .where(*conditions)
        .group_by(of.limit_name, of.kind, users.c.email, of.token_id)
        .order_by(total.desc(), of.limit_name, of.token_id)
        .limit(limit)
    )


def _apply(tx: Tx, names: Sequence[str], operations: Iterable[Operation]) -> list[Any]:
    """Run `operations` in order and return their results; read and write each counter only once."""
    before = _lock_counters(tx, names)
    after, results = dict(before), list[Any]()
    for operation in operations:
        changed, result = operation(tx, after)
        after |= changed
        results.append(result)
    changes = [
        {"counter_name": name, "new_counter": after[name], "new_at": tx.now}
        for name in names
        if after[name] is not before[name]
    ]
    if changes:
        tx.conn.execute(_UPDATE, changes)
    return results


def _lock_counters(tx: Tx, names: Sequence[str]) -> dict[str, Counter]:
    """Lock and return the counters with these names; create missing ones.

    All processes lock in the order of the names, so that they cannot deadlock.
    """
    current = _load_counters(tx, names)
    missing = [name for name in names if name not in current]
    if missing:
        new = [{"name": name, "counter": Counter(), "updated_at": tx.now} for name in missing]
        tx.conn.execute(insert_into(counters, tx.conn.dialect.name).on_conflict_do_nothing(), new)
        current |= _load_counters(tx, missing)
    return current


def _load_counters(tx: Tx, names: Sequence[str]) -> dict[str, Counter]:
    return {row.name: with_sums(row.counter) for row in tx.conn.execute(_LOCK, {"names": names})}


_LOCK = (
    sa.select(counters.c.name, counters.c.counter)
    .where(counters.c.name.in_(sa.bindparam("names", expanding=True)))
    .order_by(counters.c.name)
    .with_for_update()
)
_UPDATE = (
    sa.update(counters)
    .where(counters.c.name == sa.bindparam("counter_name", type_=sa.Text))
    .values(
        counter=sa.bindparam("new_counter", type_=counters.c.counter.type),
        updated_at=sa.bindparam("new_at", type_=sa.BigInteger),
    )
)
