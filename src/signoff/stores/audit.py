"""The audit log, in SQL, and deletions that it records."""

from typing import Any

import sqlalchemy as sa

from signoff.core.audit import Actor, AuditChange, AuditEntry, AuditFilter, change_of
from signoff.store import Topic
from signoff.stores.audit_schema import audit
from signoff.stores.database import Database
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock


class SqlAudit:
    """The audit log in a SQL database; see `accounts.Audit`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, filters: AuditFilter) -> list[AuditEntry]:
        """See `accounts.Audit`."""
        query = sa.select(*audit.c).order_by(audit.c.id.desc()).limit(filters.limit)
        for column in (audit.c.actor, audit.c.subject, audit.c.action):
            if (value := getattr(filters, column.name)) is not None:
                query = query.where(column == value)
        if filters.since is not None:
            query = query.where(audit.c.at >= filters.since)
        if filters.until is not None:
            query = query.where(audit.c.at < filters.until)
        if filters.after_id is not None:
            query = query.where(audit.c.id < filters.after_id)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [AuditEntry(**row) for row in rows]

    async def record_settings(self, subject: str, settings: dict[str, Any]) -> bool:
        """See `accounts.Audit`."""
        last = sa.select(audit.c.after).where(audit.c.subject == subject).order_by(audit.c.id.desc()).limit(1)

        def add(tx: Tx) -> bool:
            lock(tx, "people")  # any lock will do: processes that start together record their settings once
            before = tx.conn.execute(last).scalar_one_or_none()
            if before == settings:
                return False
            change = AuditChange(action="settings_changed", subject=subject, before=before, after=settings)
            record(tx, Actor(), change)
            return True

        return await self._database.write(add)


def record(tx: Tx, actor: Actor, change: AuditChange) -> None:
    """Add an entry in the transaction of the change. Read `actor` before that, as it may run in another thread."""
    values = {name: getattr(change, name) for name in AuditChange.__struct_fields__}
    tx.conn.execute(sa.insert(audit).values(at=tx.now, actor=actor.name, client=actor.client, **values))


def delete_one(tx: Tx, actor: Actor, topic: Topic, noun: str, name: str, delete: sa.Executable) -> Any:
    """Delete a row by a statement that returns its value; return that, or None if there is no such row.

    The deletion of the `noun` with this name is recorded, and processes drop their copies of the topic.
    """
    lock(tx, topic)
    old = tx.conn.execute(delete).scalar_one_or_none()
    if old is not None:
        record(tx, actor, change_of(noun, name, old, None))
        bump(tx, topic)
    return old
