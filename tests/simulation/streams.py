"""In-memory streams: their declarations, and the leaders of streams that only one process may consume."""

from __future__ import annotations

from signoff.core.audit import change_of
from signoff.core.stream import Stream
from signoff.core.times import SECOND_US
from signoff.errors import name_taken
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, record


class MemoryStreams:
    """In-memory implementation of `catalog.Streams`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def all(self) -> list[Stream]:
        streams = self._tables.streams
        return await self._connection.send(lambda _: [stream for _, stream in sorted(streams.items())], writes=False)

    async def put(self, stream: Stream, *, is_new: bool = False) -> None:
        actor = current_actor()

        def put(tx: Tx) -> None:
            old = self._tables.streams.get(stream.name)
            if old is not None and is_new:
                raise name_taken(stream.name)
            record(self._tables, tx, actor, change_of("stream", stream.name, old, stream))
            self._tables.streams[stream.name] = stream
            self._bump(tx)

        await self._connection.send(put, writes=True)

    async def drop(self, name: str) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            dropped = self._tables.streams.pop(name, None)
            if dropped is not None:
                record(self._tables, tx, actor, change_of("stream", name, dropped, None))
                self._bump(tx)
            return dropped is not None

        return await self._connection.send(drop, writes=True)

    async def acquire_lead(self, name: str, holder: str, seconds: float) -> bool:
        def lead(tx: Tx) -> bool:
            leader, until = self._tables.leads.get(name, (holder, 0))
            if leader != holder and until >= tx.now:
                return False
            self._tables.leads[name] = (holder, tx.now + round(seconds * SECOND_US))
            return True

        return await self._connection.send(lead, writes=True)

    async def release_lead(self, name: str, holder: str) -> None:
        def yield_lead(_: Tx) -> None:
            if self._tables.leads.get(name, ("", 0))[0] == holder:
                del self._tables.leads[name]

        await self._connection.send(yield_lead, writes=True)

    def _bump(self, tx: Tx) -> None:
        self._tables.versions["streams"] += 1
        tx.changes.append(("streams", ""))
