"""The streams that this process knows: those of its settings, a copy of the store's, and how it listens to them."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.catalog import Streams as Stored
from signoff.core.stream import ListenerStatus, Stream
from signoff.errors import NotFound
from signoff.runtime.snapshot import Snapshot


class StreamCache:
    """Streams by name. `listening` says of each how this process listens to it, if it does at all."""

    def __init__(self, stored: Stored, declared: Sequence[Stream]) -> None:
        self._stored = stored
        self._declared = {stream.name: stream for stream in declared}
        self._streams = Snapshot(self._read)
        self.statuses: dict[str, ListenerStatus] = {}

    async def find(self, name: str) -> Stream:
        """The stream called `name`. Raises NotFound."""
        found = (await self._streams.get()).get(name)
        if found is None:
            raise NotFound(f"There is no stream {name!r}.")
        return found

    async def all(self) -> Sequence[Stream]:
        """Every stream, those of the settings first."""
        return list((await self._streams.get()).values())

    def is_declared(self, name: str) -> bool:
        """Whether the settings declare that stream: then nobody changes it at run time."""
        return name in self._declared

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._streams.invalidate()

    async def _read(self) -> dict[str, Stream]:
        stored = {stream.name: stream for stream in await self._stored.all()}
        return self._declared | {name: stored[name] for name in stored if name not in self._declared}
