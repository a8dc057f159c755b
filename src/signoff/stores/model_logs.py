"""The newest log lines of each model, in SQL."""

from collections.abc import Sequence

import sqlalchemy as sa

from signoff.core.log import LogLine
from signoff.stores.database import Database
from signoff.stores.schema import model_logs
from signoff.stores.transaction import Tx

_MODEL = model_logs.c.model == sa.bindparam("name", type_=sa.Text)
_NEWEST = sa.select(model_logs).where(_MODEL).order_by(model_logs.c.id.desc())
_NEWEST_TO_DELETE = _NEWEST.with_only_columns(model_logs.c.id).offset(sa.bindparam("offset", type_=sa.Integer)).limit(1)
_TRIM = sa.delete(model_logs).where(_MODEL, model_logs.c.id <= _NEWEST_TO_DELETE.scalar_subquery())
_CLEAN = sa.delete(model_logs).where(_MODEL)


class SqlModelLogs:
    """Model logs in a SQL database; see `catalog.ModelLogs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, max_lines: int) -> None:
        """See `catalog.ModelLogs`."""
        rows = [{"model": name, "at": line.at, "level": line.level, "text": line.text} for name, line in lines]

        def add(tx: Tx) -> None:
            tx.conn.execute(sa.insert(model_logs), rows)
            for name in sorted({name for name, _ in lines}):
                tx.conn.execute(_TRIM, {"name": name, "offset": max_lines})

        if rows:
            await self._database.write(add)

    async def read(self, model: str, limit: int) -> list[LogLine]:
        """See `catalog.ModelLogs`."""
        rows = await self._database.read(lambda conn, _: conn.execute(_NEWEST.limit(limit), {"name": model}).all())
        return [LogLine(at=row.at, level=row.level, text=row.text) for row in reversed(rows)]

    async def clean(self, model: str) -> None:
        """See `catalog.ModelLogs`."""
        await self._database.write(lambda tx: tx.conn.execute(_CLEAN, {"name": model}).rowcount)
