"""In-memory erasures of users."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.core.audit import user_erased
from signoff.core.times import SECOND_US
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.records import ERASED_EMAIL, PendingErasure
from simulation.budgets import close_unjudged
from simulation.tables import Connection, Tables, Tx, bump, record


class MemoryErasures:
    """In-memory implementation of `records.Erasures`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def begin(self, user_id: int) -> None:
        actor = current_actor()

        def begin(tx: Tx) -> None:
            tables = self._tables
            user = next(user for user in tables.users.values() if user.id == user_id)
            if user.active:
                raise Conflict("Disable the user before you erase them.")
            if user_id not in tables.erasures:
                record(tables, tx, actor, user_erased(user_id))
            tables.erasures[user_id] = tx.now
            tables.users[user.email] = msgspec.structs.replace(user, password_hash=None)
            for account in [account for account, owner in tables.provider_accounts.items() if owner == user_id]:
                del tables.provider_accounts[account]
            for name, token in tables.tokens.items():
                if token.user_id == user_id:
                    tables.tokens[name] = msgspec.structs.replace(token, active=False, name="", key_id=None)
            tables.sealed = {name: row for name, row in tables.sealed.items() if row[0].user_id != user_id}
            for topic in ("people", "limits", "models", "compositions"):
                bump(tables, tx, topic)

        await self._connection.send(begin, writes=True)

    async def pending(self, limit: int) -> list[PendingErasure]:
        def read(tx: Tx) -> list[PendingErasure]:
            times = sorted((user_id, at) for user_id, at in self._tables.erasures.items() if at is not None)
            return [PendingErasure(user_id=name, age_seconds=(tx.now - at) / SECOND_US) for name, at in times[:limit]]

        return await self._connection.send(read, writes=False)

    async def close_audits(self, job_ids: Sequence[str]) -> None:
        await self._connection.send(lambda tx: close_unjudged(self._tables, tx, job_ids), writes=True)

    async def delete_jobs(self, user_id: int, job_ids: Sequence[str]) -> int:
        def delete(tx: Tx) -> int:
            jobs = (self._tables.ended.get(job_id) for job_id in job_ids)
            tx.purged = [job.id for job in jobs if job is not None and job.user_id == user_id]
            names = [job_id.lower() for job_id in tx.purged]
            for model, lines in self._tables.model_logs.items():
                others = [line for line in lines if not any(name in line.text.lower() for name in names)]
                self._tables.model_logs[model] = others
            return len(tx.purged)

        return await self._connection.send(delete, writes=True)

    async def finish(self, user_id: int, *, is_final: bool) -> None:
        def finish(tx: Tx) -> None:
            tables = self._tables
            user = next(user for user in tables.users.values() if user.id == user_id)
            del tables.users[user.email]
            anonymous = msgspec.structs.replace(user, email=ERASED_EMAIL.format(user_id))
            tables.users[anonymous.email] = anonymous
            if is_final:
                tables.erasures[user_id] = None
            bump(tables, tx, "people")

        await self._connection.send(finish, writes=True)
