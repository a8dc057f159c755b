"""Streams that were declared at run time, and the leads of exclusive ones, in SQL."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.core.audit import change_of
from signoff.core.stream import Stream
from signoff.core.times import SECOND_US
from signoff.errors import name_taken
from signoff.infra.actor import current_actor
from signoff.stores.audit import delete_one, record
from signoff.stores.database import Database
from signoff.stores.streams_schema import stream_leads, streams
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock


class SqlStreams:
    """Streams in a SQL database; see `catalog.Streams`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Stream]:
        """See `catalog.Streams`."""
        query = sa.select(streams.c.stream).order_by(streams.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def put(self, stream: Stream, *, is_new: bool = False) -> None:
        """See `catalog.Streams`."""
        actor = current_actor()
        exists = sa.select(streams.c.name).where(streams.c.name == stream.name)
        delete = sa.delete(streams).where(streams.c.name == stream.name).returning(streams.c.stream)

        def put(tx: Tx) -> None:
            lock(tx, "streams")
            if is_new and tx.conn.execute(exists).first() is not None:
                raise name_taken(stream.name)
            bump(tx, "streams")
            old = tx.conn.execute(delete).scalar_one_or_none()
            record(tx, actor, change_of("stream", stream.name, old, stream))
            tx.conn.execute(sa.insert(streams).values(name=stream.name, stream=stream, updated_at=tx.now))

        await self._database.write(put)

    async def drop(self, name: str) -> bool:
        """See `catalog.Streams`."""
        actor = current_actor()
        delete = sa.delete(streams).where(streams.c.name == name).returning(streams.c.stream)
        old = await self._database.write(lambda tx: delete_one(tx, actor, "streams", "stream", name, delete))
        return old is not None

    async def acquire_lead(self, name: str, holder: str, seconds: float) -> bool:
        """See `catalog.Streams`."""

        def acquire(tx: Tx) -> bool:
            until = tx.now + round(seconds * SECOND_US)
            free = (stream_leads.c.holder == holder) | (stream_leads.c.until < tx.now)
            update = sa.update(stream_leads).where(stream_leads.c.name == name, free)
            if tx.conn.execute(update.values(holder=holder, until=until)).rowcount == 1:
                return True
            if tx.conn.execute(sa.select(stream_leads.c.name).where(stream_leads.c.name == name)).first():
                return False
            tx.conn.execute(sa.insert(stream_leads).values(name=name, holder=holder, until=until))
            return True

        try:
            return await self._database.write(acquire)
        except IntegrityError:  # another process inserted the lead at the same time
            return False

    async def release_lead(self, name: str, holder: str) -> None:
        """See `catalog.Streams`."""
        delete = sa.delete(stream_leads).where(stream_leads.c.name == name, stream_leads.c.holder == holder)
        await self._database.write(lambda tx: tx.conn.execute(delete).rowcount)
