"""Erasures of users, in SQL."""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import sqlalchemy as sa

from signoff.core.audit import user_erased
from signoff.core.job import TERMINAL
from signoff.core.limits import limit_name
from signoff.core.times import SECOND_US
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.records import ERASED_EMAIL, PendingErasure
from signoff.store import Topic
from signoff.stores.audit import record
from signoff.stores.audits import close_unjudged
from signoff.stores.database import Database
from signoff.stores.deletion import delete_calls, delete_jobs
from signoff.stores.job_pages import chunked
from signoff.stores.limits_schema import limits
from signoff.stores.people_schema import provider_accounts, saved_views, tokens, users
from signoff.stores.receipts_schema import erasures
from signoff.stores.schema import (
    cached,
    calls,
    composed_calls,
    composed_labels,
    composed_versions,
    compositions,
    jobs,
    keys,
    model_logs,
)
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

TOPICS: tuple[Topic, ...] = ("people", "limits", "models", "compositions")


class SqlErasures:
    """Erasures in a SQL database; see `records.Erasures`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, user_id: int) -> None:
        """See `records.Erasures`."""
        actor = current_actor()

        def begin(tx: Tx) -> None:
            for topic in TOPICS:
                lock(tx, topic)
            if tx.conn.execute(sa.select(users.c.active).where(users.c.id == user_id)).scalar_one():
                raise Conflict("Disable the user before you erase them.")
            is_known = tx.conn.execute(sa.select(erasures.c.user_id).where(erasures.c.user_id == user_id)).first()
            if is_known is None:
                tx.conn.execute(sa.insert(erasures).values(user_id=user_id, requested_at=tx.now))
                record(tx, actor, user_erased(user_id))
            else:
                again = sa.update(erasures).where(erasures.c.user_id == user_id)
                tx.conn.execute(again.values(requested_at=tx.now, finished_at=None))
            _delete_own(tx, user_id)
            for topic in TOPICS:
                bump(tx, topic)

        await self._database.write_alone(begin)

    async def pending(self, limit: int) -> list[PendingErasure]:
        """See `records.Erasures`."""
        query = sa.select(*erasures.c).where(erasures.c.finished_at.is_(None)).order_by(erasures.c.user_id).limit(limit)

        def read(conn: sa.Connection, now: Any) -> list[PendingErasure]:
            rows = conn.execute(query).all()
            return [
                PendingErasure(user_id=row.user_id, age_seconds=(now() - row.requested_at) / SECOND_US) for row in rows
            ]

        return await self._database.read(read)

    async def close_audits(self, job_ids: Sequence[str]) -> None:
        """See `records.Erasures`."""
        await self._database.write(lambda tx: close_unjudged(tx, job_ids))

    async def delete_jobs(self, user_id: int, job_ids: Sequence[str]) -> int:
        """See `records.Erasures`."""
        return await self._database.write(lambda tx: _delete(tx, user_id, job_ids))

    async def finish(self, user_id: int, *, is_final: bool) -> None:
        """See `records.Erasures`."""

        def finish(tx: Tx) -> None:
            bump(tx, "people")
            anonymous = ERASED_EMAIL.format(user_id)
            tx.conn.execute(sa.update(users).where(users.c.id == user_id).values(email=anonymous))
            if is_final:
                tx.conn.execute(sa.update(erasures).where(erasures.c.user_id == user_id).values(finished_at=tx.now))

        await self._database.write(finish)


def _delete_own(tx: Tx, user_id: int) -> None:
    """Delete what belongs to a user beside their jobs: rights, keys, limits, and prompts that nobody else may use."""
    own = tokens.c.user_id == user_id
    tx.conn.execute(sa.update(tokens).where(own).values(active=False, name="", key_id=None))
    tx.conn.execute(sa.update(users).where(users.c.id == user_id).values(password_hash=None))
    tx.conn.execute(sa.delete(provider_accounts).where(provider_accounts.c.user_id == user_id))
    tx.conn.execute(sa.delete(saved_views).where(saved_views.c.user_id == user_id))
    tx.conn.execute(sa.delete(keys).where(keys.c.user_id == user_id))
    name = limit_name("user", user_id, None)
    of_user = (limits.c.name == name) | limits.c.name.startswith(limit_name("user", user_id, ""), autoescape=True)
    tx.conn.execute(sa.delete(limits).where(of_user))
    private = sa.select(compositions.c.id).where(compositions.c.user_id == user_id, ~compositions.c.shared)
    for table in (composed_versions, composed_labels, composed_calls):
        tx.conn.execute(sa.delete(table).where(table.c.composed_id.in_(private)))
    tx.conn.execute(sa.delete(compositions).where(compositions.c.user_id == user_id, ~compositions.c.shared))


def _delete(tx: Tx, user_id: int, job_ids: Sequence[str]) -> int:
    is_ended = jobs.c.status.in_(sorted(TERMINAL))
    own = sa.select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.user_id == user_id, is_ended)
    ids = tx.conn.execute(own).scalars().all()
    of_calls = sa.select(calls.c.id).where(calls.c.id.in_(job_ids), calls.c.user_id == user_id)
    call_ids = tx.conn.execute(of_calls).scalars().all()
    delete_jobs(tx, ids)
    delete_calls(tx, call_ids)
    tx.conn.execute(sa.delete(cached).where(cached.c.job_id.in_([*ids, *call_ids])))
    _delete_log_lines(tx, [*ids, *call_ids])
    return len(ids) + len(call_ids)


def _delete_log_lines(tx: Tx, job_ids: Sequence[str]) -> None:
    """Delete the lines of model logs that name one of the jobs.

    Ids begin with their time, so those of a page begin alike, and the database passes over lines without that text.
    """
    if not job_ids:
        return
    lower_ids = [job_id.lower() for job_id in job_ids]
    beginning = commonprefix(lower_ids)  # noqa: RUF071 -- of characters, not of paths
    may_name = sa.func.lower(model_logs.c.text).contains(beginning, autoescape=True)
    lines = tx.conn.execute(sa.select(model_logs.c.id, model_logs.c.text).where(may_name))
    naming = [row.id for row in lines if any(job_id in row.text.lower() for job_id in lower_ids)]
    for ids in chunked(naming):
        tx.conn.execute(sa.delete(model_logs).where(model_logs.c.id.in_(ids)))
