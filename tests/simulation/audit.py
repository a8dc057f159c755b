"""In-memory audit log."""

from __future__ import annotations

from typing import Any

from signoff.core.audit import Actor, AuditChange, AuditEntry, AuditFilter
from simulation.tables import Connection, Tables, Tx, record


class MemoryAudit:
    """In-memory implementation of `accounts.Audit`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def page(self, filters: AuditFilter) -> list[AuditEntry]:
        def matches(entry: AuditEntry) -> bool:
            wanted = {name: getattr(filters, name) for name in ("actor", "subject", "action")}
            return (
                all(value in {None, getattr(entry, name)} for name, value in wanted.items())
                and (filters.since is None or entry.at >= filters.since)
                and (filters.until is None or entry.at < filters.until)
                and (filters.after_id is None or entry.id < filters.after_id)
            )

        def read(_: Tx) -> list[AuditEntry]:
            return [entry for entry in reversed(self._tables.audit) if matches(entry)][: filters.limit]

        return await self._connection.send(read, writes=False)

    async def record_settings(self, subject: str, settings: dict[str, Any]) -> bool:
        def add(tx: Tx) -> bool:
            states = (entry.after for entry in reversed(self._tables.audit) if entry.subject == subject)
            before = next(states, None)
            if before == settings:
                return False
            change = AuditChange(action="settings_changed", subject=subject, before=before, after=settings)
            record(self._tables, tx, Actor(), change)
            return True

        return await self._connection.send(add, writes=True)
