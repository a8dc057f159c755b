"""Registered models, and the sealed keys of their upstreams, as SQL."""

from __future__ import annotations

import sqlalchemy as sa

from signoff.core.target import Model
from signoff.stores.database import Database
from signoff.stores.schema import keys, models
from signoff.stores.versions import bump
from signoff.stores.writer import Tx


class SqlCatalog:
    """The catalog in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def models(self) -> list[Model]:
        """See `store.Catalog`."""
        query = sa.select(models.c.model).order_by(models.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def put_model(self, model: Model) -> None:
        """See `store.Catalog`."""

        def put(tx: Tx) -> None:
            bump(tx, "models")
            tx.conn.execute(sa.delete(models).where(models.c.name == model.name))
            tx.conn.execute(sa.insert(models).values(name=model.name, model=model, updated_at=tx.now))

        await self._database.write(put)

    async def drop_model(self, name: str) -> bool:
        """See `store.Catalog`."""

        def drop(tx: Tx) -> bool:
            dropped = tx.conn.execute(sa.delete(models).where(models.c.name == name)).rowcount == 1
            if dropped:
                bump(tx, "models")
            return dropped

        return await self._database.write(drop)

    async def add_key(self, user_id: int | None, name: str, sealed: bytes) -> int:
        """See `store.Catalog`."""

        def add(tx: Tx) -> int:
            values = {"user_id": user_id, "name": name, "sealed": sealed, "created_at": tx.now}
            return tx.conn.execute(sa.insert(keys).values(values).returning(keys.c.id)).scalar_one()

        return await self._database.write(add)

    async def key(self, key_id: int) -> bytes | None:
        """See `store.Catalog`."""
        query = sa.select(keys.c.sealed).where(keys.c.id == key_id)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one_or_none())
