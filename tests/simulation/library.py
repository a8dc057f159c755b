"""In-memory library: prompts, pipelines and registered functions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.catalog import SyncResult
from signoff.core.audit import change_of, functions_changed, label_moved, sharing_changed
from signoff.core.filters import MAX_PAGE_BYTES, LibraryFilter, Page, page_length
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, Pipeline, Prompt, check_library_size
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import calls_of
from signoff.errors import LibraryItemNotFound, VersionConflict, name_taken
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, bump, record


class MemoryLibrary:
    """In-memory implementation of `catalog.Library`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def put(
        self, item: LibraryItem, *, label: str | None = PRODUCTION, expected_version: int | None = None
    ) -> LibraryItem:
        actor = current_actor()

        def put(tx: Tx) -> LibraryItem:
            tables = self._tables
            existing = tables.library_items.get(item.id)
            if item.id and (existing is None or type(existing[1]) is not type(item)):
                raise LibraryItemNotFound
            of_user = [
                version
                for versions in tables.library_items.values()
                for version in versions.values()
                if version.user_id == item.user_id
            ]
            check_library_size(len(of_user) + 1, sum(len(each.body) for each in of_user) + len(item.body))
            item_id = item.id or self._new_id(item)
            versions = tables.library_items.setdefault(item_id, {})
            if versions and expected_version not in {None, len(versions)}:
                raise VersionConflict
            number = len(versions) + 1
            old = self._with_labels(versions[number - 1]) if versions else None
            versions[number] = msgspec.structs.replace(item, id=item_id, version=number, created_at=tx.now)
            for moved_label in {label, PRODUCTION} - {None} if number == 1 else {label} - {None}:
                tables.labels[item_id, str(moved_label)] = number
            self._share(item_id, item.shared)
            bump(tables, tx, "compositions")
            new = self._with_labels(versions[number])
            record(tables, tx, actor, change_of(_kind(new), new.name, old, new))
            return new

        return await self._connection.send(put, writes=True)

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        def read(_: Tx) -> LibraryItem | None:
            named = (number for number, versions in self._tables.library_items.items() if versions[1].name == key)
            item_id = key if isinstance(key, int) else next(named, 0)
            version = at if isinstance(at, int) else self._tables.labels.get((item_id, at), 0)
            item = self._tables.library_items.get(item_id, {}).get(version)
            return None if item is None else self._with_labels(item)

        return await self._connection.send(read, writes=False)

    async def list(self, filters: LibraryFilter) -> Page[LibraryItem]:
        def read(_: Tx) -> Page[LibraryItem]:
            kinds = {"prompt": Prompt, "pipeline": Pipeline, None: Prompt | Pipeline}[filters.kind]
            stored = self._tables.library_items.items()
            in_production = (versions[self._tables.labels[number, PRODUCTION]] for number, versions in stored)
            matching = [
                self._with_labels(entry)
                for entry in sorted(in_production, key=lambda entry: entry.name)
                if isinstance(entry, kinds)
                and entry.name > filters.after
                and (filters.user_id is None or entry.user_id == filters.user_id or entry.shared)
                and (filters.calls is None or self._calls(entry.id, filters.calls))
            ]
            return _page(matching, filters.limit, filters.max_bytes)

        return await self._connection.send(read, writes=False)

    async def versions(self, item_id: int, *, before: int | None = None, limit: int = 50) -> Page[LibraryItem]:
        def read(_: Tx) -> Page[LibraryItem]:
            newest_first = reversed(self._tables.library_items.get(item_id, {}).values())
            matching = [self._with_labels(each) for each in newest_first if before is None or each.version < before]
            return _page(matching, limit, MAX_PAGE_BYTES)

        return await self._connection.send(read, writes=False)

    async def label(self, item_id: int, label: str, version: int | None) -> bool:
        actor = current_actor()

        def set_label(tx: Tx) -> bool:
            old = self._tables.labels.get((item_id, label))
            if version is None:
                is_changed = self._tables.labels.pop((item_id, label), None) is not None
            else:
                is_changed = version in self._tables.library_items.get(item_id, {})
                if is_changed:
                    self._tables.labels[item_id, label] = version
            if is_changed:
                item = self._tables.library_items[item_id][1]
                record(self._tables, tx, actor, label_moved(_kind(item), item.name, label, old, version))
                bump(self._tables, tx, "compositions")
            return is_changed

        return await self._connection.send(set_label, writes=True)

    async def share(self, item_id: int, *, shared: bool) -> bool:
        actor = current_actor()

        def share(tx: Tx) -> bool:
            if item_id not in self._tables.library_items:
                return False
            item = self._tables.library_items[item_id][1]
            record(self._tables, tx, actor, sharing_changed(_kind(item), item.name, old=item.shared, new=shared))
            self._share(item_id, shared)
            bump(self._tables, tx, "compositions")
            return True

        return await self._connection.send(share, writes=True)

    async def drop(self, item_id: int) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            versions = self._tables.library_items.get(item_id)
            if versions is None:
                return False
            item = self._with_labels(versions[max(versions)])
            record(self._tables, tx, actor, change_of(_kind(item), item.name, item, None))
            del self._tables.library_items[item_id]
            self._tables.labels = {key: version for key, version in self._tables.labels.items() if key[0] != item_id}
            bump(self._tables, tx, "compositions")
            return True

        return await self._connection.send(drop, writes=True)

    async def functions(self) -> Sequence[Function]:
        return await self._connection.send(
            lambda _: [entry for _, entry in sorted(self._tables.functions.items())], writes=False
        )

    async def sync(self, functions: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        actor = current_actor()

        def sync(tx: Tx) -> SyncResult:
            before = self._tables.functions
            names = {versions[1].name for versions in self._tables.library_items.values()}
            accepted = {function.name: function for function in functions if function.name not in names}
            registered = {name: entry for name, entry in before.items() if entry.module in unread} | accepted
            self._tables.functions = registered
            created, deleted = sorted(accepted.keys() - before.keys()), sorted(before.keys() - registered.keys())
            changed = sorted(name for name in accepted.keys() & before.keys() if accepted[name] != before[name])
            if created or changed or deleted:
                record(self._tables, tx, actor, functions_changed(created, changed, deleted))
            bump(self._tables, tx, "functions")
            return SyncResult(
                tuple(created),
                tuple(deleted),
                tuple(sorted(function.name for function in functions if function.name in names)),
            )

        return await self._connection.send(sync, writes=True)

    def _new_id(self, item: LibraryItem) -> int:
        used_names = {
            versions[1].name for versions in self._tables.library_items.values()
        } | self._tables.functions.keys()
        if item.name in used_names:
            raise name_taken(item.name)
        self._tables.last_item_id += 1
        return self._tables.last_item_id

    def _share(self, item_id: int, shared: bool) -> None:
        versions = self._tables.library_items[item_id]
        for number, entry in versions.items():
            versions[number] = msgspec.structs.replace(entry, shared=shared)

    def _with_labels(self, item: LibraryItem) -> LibraryItem:
        labels = self._tables.labels.items()
        named = sorted(label for (number, label), to in labels if (number, to) == (item.id, item.version))
        return msgspec.structs.replace(item, labels=tuple(named))

    def _calls(self, item_id: int, name: str) -> bool:
        versions = self._tables.library_items[item_id]
        live = {max(versions), *(to for (number, _), to in self._tables.labels.items() if number == item_id)}
        return any(
            name in {call.name for call in calls_of(entry.tree)}
            for number, entry in versions.items()
            if number in live and isinstance(entry, Pipeline)
        )


def _kind(item: LibraryItem) -> str:
    return "prompt" if isinstance(item, Prompt) else "pipeline"


def _page(matching: Sequence[LibraryItem], limit: int, max_bytes: int) -> Page[LibraryItem]:
    listed = matching[:limit]
    page = listed[: page_length((len(item.body) for item in listed), max_bytes)]
    return Page(page, may_continue=0 < len(listed) == limit or len(page) < len(listed))
