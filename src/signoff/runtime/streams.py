"""Cache of the streams, declared in the settings and stored in the database, and how this process listens to them."""

from collections.abc import Sequence

from signoff.catalog import Streams as StoredStreams
from signoff.core.stream import ListenerStatus, Stream
from signoff.errors import NotFound
from signoff.runtime.snapshot import Snapshot


class StreamCache:
    """Streams by name; a declared stream hides a stored one of the same name.

    `statuses` has the status of each stream that this process listens to; `server.consumer` fills it.
    """

    def __init__(self, stored: StoredStreams, declared: Sequence[Stream]) -> None:
        self._stored = stored
        self._declared = {stream.name: stream for stream in declared}
        self._streams = Snapshot(self._read)
        self.statuses: dict[str, ListenerStatus] = {}

    async def find(self, name: str) -> Stream:
        """Return the stream called `name`. Raises NotFound."""
        stream = (await self._streams.get()).get(name)
        if stream is None:
            raise NotFound(f"There is no stream {name!r}; list them with `GET /api/streams`.")
        return stream

    async def all(self) -> Sequence[Stream]:
        """Return every stream, declared ones first."""
        return list((await self._streams.get()).values())

    def is_declared(self, name: str) -> bool:
        """Return True if the settings declare that stream, so that it cannot be changed at run time."""
        return name in self._declared

    def invalidate(self) -> None:
        """Clear the cache."""
        self._streams.invalidate()

    async def _read(self) -> dict[str, Stream]:
        stored = {stream.name: stream for stream in await self._stored.all()}
        return self._declared | {name: stored[name] for name in stored if name not in self._declared}
