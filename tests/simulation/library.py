"""In-memory library: prompts, pipelines and registered functions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.catalog import SyncResult
from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import calls_of
from signoff.errors import LibraryItemNotFound, NameTaken
from simulation.people import bump
from simulation.tables import Tables, Tx, Way


class MemoryLibrary:
    """In-memory implementation of `catalog.Library`."""

    def __init__(self, tables: Tables, way: Way) -> None:
        self._tables = tables
        self._way = way

    async def put(self, composed: LibraryItem, *, label: str | None = PRODUCTION) -> LibraryItem:
        def put(tx: Tx) -> LibraryItem:
            tables = self._tables
            there = tables.composed.get(composed.id)
            if composed.id and (there is None or type(there[1]) is not type(composed)):
                raise LibraryItemNotFound
            composed_id = composed.id or self._new(composed)
            versions = tables.composed.setdefault(composed_id, {})
            number = len(versions) + 1
            versions[number] = msgspec.structs.replace(composed, id=composed_id, version=number, created_at=tx.now)
            for moved in {label, PRODUCTION} - {None} if number == 1 else {label} - {None}:
                tables.labels[composed_id, str(moved)] = number
            self._share(composed_id, composed.shared)
            bump(tables, tx, "compositions")
            return self._seen(versions[number])

        return await self._way.send(put, writes=True)

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        def look(_: Tx) -> LibraryItem | None:
            named = (number for number, versions in self._tables.composed.items() if versions[1].name == key)
            composed_id = key if isinstance(key, int) else next(named, 0)
            version = at if isinstance(at, int) else self._tables.labels.get((composed_id, at), 0)
            found = self._tables.composed.get(composed_id, {}).get(version)
            return None if found is None else self._seen(found)

        return await self._way.send(look, writes=False)

    async def list(self, which: LibraryFilter) -> Sequence[LibraryItem]:
        def look(_: Tx) -> list[LibraryItem]:
            kinds = {"prompt": Prompt, "pipeline": Pipeline, None: Prompt | Pipeline}[which.kind]
            everything = self._tables.composed.items()
            all_of_them = (versions[self._tables.labels[number, PRODUCTION]] for number, versions in everything)
            found = [
                self._seen(one)
                for one in sorted(all_of_them, key=lambda one: one.name)
                if isinstance(one, kinds)
                and one.name > which.after
                and (which.user_id is None or one.user_id == which.user_id or one.shared)
                and (which.calls is None or self._calls(one.id, which.calls))
            ]
            return found[: which.limit]

        return await self._way.send(look, writes=False)

    async def versions(self, composed_id: int, *, before: int | None = None, limit: int = 50) -> Sequence[LibraryItem]:
        def look(_: Tx) -> list[LibraryItem]:
            newest_first = reversed(self._tables.composed.get(composed_id, {}).values())
            return [self._seen(one) for one in newest_first if before is None or one.version < before][:limit]

        return await self._way.send(look, writes=False)

    async def label(self, composed_id: int, label: str, version: int | None) -> bool:
        def move(tx: Tx) -> bool:
            if version is None:
                moved = self._tables.labels.pop((composed_id, label), None) is not None
            else:
                moved = version in self._tables.composed.get(composed_id, {})
                if moved:
                    self._tables.labels[composed_id, label] = version
            if moved:
                bump(self._tables, tx, "compositions")
            return moved

        return await self._way.send(move, writes=True)

    async def share(self, composed_id: int, *, shared: bool) -> bool:
        def share(tx: Tx) -> bool:
            if composed_id not in self._tables.composed:
                return False
            self._share(composed_id, shared)
            bump(self._tables, tx, "compositions")
            return True

        return await self._way.send(share, writes=True)

    async def drop(self, composed_id: int) -> bool:
        def drop(tx: Tx) -> bool:
            if self._tables.composed.pop(composed_id, None) is None:
                return False
            self._tables.labels = {key: kept for key, kept in self._tables.labels.items() if key[0] != composed_id}
            bump(self._tables, tx, "compositions")
            return True

        return await self._way.send(drop, writes=True)

    async def functions(self) -> Sequence[Function]:
        return await self._way.send(lambda _: [one for _, one in sorted(self._tables.functions.items())], writes=False)

    async def sync(self, found: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        def sync(tx: Tx) -> SyncResult:
            before = self._tables.functions
            names = {versions[1].name for versions in self._tables.composed.values()}
            wanted = {function.name: function for function in found if function.name not in names}
            kept = {name: one for name, one in before.items() if one.module in unread} | wanted
            self._tables.functions = kept
            bump(self._tables, tx, "functions")
            return SyncResult(
                tuple(sorted(wanted.keys() - before.keys())),
                tuple(sorted(before.keys() - kept.keys())),
                tuple(sorted(function.name for function in found if function.name in names)),
            )

        return await self._way.send(sync, writes=True)

    def _new(self, composed: LibraryItem) -> int:
        taken = {versions[1].name for versions in self._tables.composed.values()} | self._tables.functions.keys()
        if composed.name in taken:
            raise NameTaken
        self._tables.composed_ids += 1
        return self._tables.composed_ids

    def _share(self, composed_id: int, shared: bool) -> None:
        versions = self._tables.composed[composed_id]
        for number, one in versions.items():
            versions[number] = msgspec.structs.replace(one, shared=shared)

    def _seen(self, composed: LibraryItem) -> LibraryItem:
        labels = self._tables.labels.items()
        named = sorted(label for (number, label), to in labels if (number, to) == (composed.id, composed.version))
        return msgspec.structs.replace(composed, labels=tuple(named))

    def _calls(self, composed_id: int, name: str) -> bool:
        versions = self._tables.composed[composed_id]
        live = {max(versions), *(to for (number, _), to in self._tables.labels.items() if number == composed_id)}
        return any(
            name in {call.name for call in calls_of(one.tree)}
            for number, one in versions.items()
            if number in live and isinstance(one, Pipeline)
        )
