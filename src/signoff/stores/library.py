"""Prompts, pipelines and registered functions, in SQL."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from signoff.catalog import SyncResult
from signoff.core.audit import Actor, change_of, functions_changed, label_moved, sharing_changed
from signoff.core.filters import MAX_PAGE_BYTES, LibraryFilter, Page, page_length
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, Pipeline, Prompt, check_library_size
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import calls_of
from signoff.errors import LibraryItemNotFound, VersionConflict, name_taken
from signoff.infra.actor import current_actor
from signoff.stores import schema
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.schema import composed_calls, composed_labels, composed_versions, compositions
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

_ITEM = (compositions.c.id, compositions.c.kind, compositions.c.name, compositions.c.user_id, compositions.c.shared)
_VERSION = tuple(column for column in composed_versions.c if column.name != "composed_id")
_ITEMS = sa.select(*_ITEM, *_VERSION).join(composed_versions, composed_versions.c.composed_id == compositions.c.id)
_CALLS = composed_calls.alias("calls")
_SIZE_OF_USER = (
    sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(composed_versions.c.body)), 0))
    .join_from(compositions, composed_versions, composed_versions.c.composed_id == compositions.c.id)
    .where(compositions.c.user_id == sa.bindparam("user", type_=sa.Integer))
)
_KEY = (compositions.c.id, composed_versions.c.version)
_SIZES = sa.select(*_KEY, sa.func.length(composed_versions.c.body).label("size")).join(
    composed_versions, composed_versions.c.composed_id == compositions.c.id
)


class SqlLibrary:
    """Prompts, pipelines and functions in a SQL database; see `catalog.Library`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, item: LibraryItem, *, label: str | None = PRODUCTION, expected_version: int | None = None
    ) -> LibraryItem:
        """See `catalog.Library`."""
        actor = current_actor()
        return await self._database.write(lambda tx: _put(tx, actor, item, label, expected_version))

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        """See `catalog.Library`."""
        is_item = compositions.c.id == key if isinstance(key, int) else compositions.c.name == key
        version = at if isinstance(at, int) else _version_with_label(at)
        query = _ITEMS.where(is_item, composed_versions.c.version == version)
        items = await self._database.read(lambda conn, _: _load_items(conn, query))
        return items[0] if items else None

    async def list(self, filters: LibraryFilter) -> Page[LibraryItem]:
        """See `catalog.Library`."""
        query = _SIZES.where(
            composed_versions.c.version == _version_with_label(PRODUCTION), compositions.c.name > filters.after
        )
        if filters.kind is not None:
            query = query.where(compositions.c.kind == filters.kind)
        if filters.user_id is not None:
            query = query.where((compositions.c.user_id == filters.user_id) | compositions.c.shared)
        if filters.calls is not None:
            query = query.where(_has_live_call_of(filters.calls))
        query = query.order_by(compositions.c.name)
        return await self._database.read(lambda conn, _: _load_page(conn, query, filters.limit, filters.max_bytes))

    async def versions(self, item_id: int, *, before: int | None = None, limit: int = 50) -> Page[LibraryItem]:
        """See `catalog.Library`."""
        query = _SIZES.where(compositions.c.id == item_id)
        if before is not None:
            query = query.where(composed_versions.c.version < before)
        query = query.order_by(composed_versions.c.version.desc())
        return await self._database.read(lambda conn, _: _load_page(conn, query, limit, MAX_PAGE_BYTES))

    async def label(self, item_id: int, label: str, version: int | None) -> bool:
        """See `catalog.Library`."""
        is_version = composed_versions.c.composed_id == item_id, composed_versions.c.version == version
        is_label = composed_labels.c.composed_id == item_id, composed_labels.c.label == label
        actor = current_actor()

        def move_label(tx: Tx) -> bool:
            lock(tx, "compositions")
            if version is not None and not _exists(tx, composed_versions, *is_version):
                return False
            delete = sa.delete(composed_labels).where(*is_label).returning(composed_labels.c.version)
            old = tx.conn.execute(delete).scalar_one_or_none()
            if version is not None:
                row = {"composed_id": item_id, "label": label, "version": version}
                tx.conn.execute(sa.insert(composed_labels).values(row))
            if old is None and version is None:
                return False
            item = tx.conn.execute(sa.select(*_ITEM).where(compositions.c.id == item_id)).one()
            record(tx, actor, label_moved(item.kind, item.name, label, old, version))
            bump(tx, "compositions")
            return True

        return await self._database.write(move_label)

    async def share(self, item_id: int, *, shared: bool) -> bool:
        """See `catalog.Library`."""
        actor = current_actor()

        def share(tx: Tx) -> bool:
            lock(tx, "compositions")
            item = tx.conn.execute(sa.select(*_ITEM).where(compositions.c.id == item_id)).one_or_none()
            if item is None:
                return False
            tx.conn.execute(sa.update(compositions).where(compositions.c.id == item_id).values(shared=shared))
            record(tx, actor, sharing_changed(item.kind, item.name, old=item.shared, new=shared))
            bump(tx, "compositions")
            return True

        return await self._database.write(share)

    async def drop(self, item_id: int) -> bool:
        """See `catalog.Library`."""
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            lock(tx, "compositions")
            item = _newest(tx, item_id)
            if item is None:
                return False
            record(tx, actor, change_of(_kind(item), item.name, item, None))
            tx.conn.execute(sa.delete(compositions).where(compositions.c.id == item_id))
            for table in (composed_versions, composed_labels, composed_calls):
                tx.conn.execute(sa.delete(table).where(table.c.composed_id == item_id))
            bump(tx, "compositions")
            return True

        return await self._database.write(drop)

    async def functions(self) -> Sequence[Function]:
        """See `catalog.Library`."""
        query = sa.select(schema.functions.c.function).order_by(schema.functions.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def sync(self, functions: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        """See `catalog.Library`."""
        actor = current_actor()
        return await self._database.write(lambda tx: _sync(tx, actor, functions, unread))


def _put(tx: Tx, actor: Actor, item: LibraryItem, label: str | None, expected_version: int | None) -> LibraryItem:
    lock(tx, "compositions")
    versions, characters = tx.conn.execute(_SIZE_OF_USER, {"user": item.user_id}).one()
    check_library_size(versions + 1, characters + len(item.body))
    old = _newest(tx, item.id) if item.id else None
    if old is not None and expected_version not in {None, old.version}:
        raise VersionConflict(f"The {_kind(old)} {old.name!r} was changed meanwhile; read it again first.")
    if item.id == 0:
        item_id, version = _insert_item(tx, item), 1
    else:
        item_id, version = item.id, _next_version(tx, item)
    row = {"composed_id": item_id, "version": version, "body": item.body, "message": item.message}
    own = {"model": item.model} if isinstance(item, Prompt) else {"tree": item.tree}
    tx.conn.execute(sa.insert(composed_versions).values(row | own | {"created_at": tx.now}))
    names = set[str]() if isinstance(item, Prompt) else {call.name for call in calls_of(item.tree)}
    calls = [{"composed_id": item_id, "version": version, "name": name} for name in sorted(names)]
    if calls:
        tx.conn.execute(sa.insert(composed_calls), calls)
    labels = {label, PRODUCTION} if version == 1 else {label}
    for moved in sorted(filter(None, labels)):
        is_label = composed_labels.c.composed_id == item_id, composed_labels.c.label == moved
        tx.conn.execute(sa.delete(composed_labels).where(*is_label))
        tx.conn.execute(sa.insert(composed_labels).values(composed_id=item_id, label=moved, version=version))
    bump(tx, "compositions")
    query = _ITEMS.where(compositions.c.id == item_id, composed_versions.c.version == version)
    new = _load_items(tx.conn, query)[0]
    record(tx, actor, change_of(_kind(new), new.name, old, new))
    return new


def _newest(tx: Tx, item_id: int) -> LibraryItem | None:
    query = _ITEMS.where(compositions.c.id == item_id, composed_versions.c.version == compositions.c.newest)
    return next(iter(_load_items(tx.conn, query)), None)


def _insert_item(tx: Tx, item: LibraryItem) -> int:
    """Insert a new item without versions, and return its id. Raises NameTaken."""
    name, functions = item.name, schema.functions
    if _exists(tx, compositions, compositions.c.name == name) or _exists(tx, functions, functions.c.name == name):
        raise name_taken(name)
    values = {"kind": _kind(item), "name": name, "user_id": item.user_id, "shared": item.shared, "newest": 1}
    return tx.conn.execute(sa.insert(compositions).values(values).returning(compositions.c.id)).scalar_one()


def _next_version(tx: Tx, item: LibraryItem) -> int:
    """Increment the newest version number of an existing item, and return it. Raises LibraryItemNotFound."""
    is_item = compositions.c.id == item.id, compositions.c.kind == _kind(item)
    values = {"newest": compositions.c.newest + 1, "shared": item.shared}
    update = sa.update(compositions).where(*is_item).values(values).returning(compositions.c.newest)
    version = tx.conn.execute(update).scalar_one_or_none()
    if version is None:
        kind = _kind(item)
        raise LibraryItemNotFound(f"There is no {kind} with the id {item.id}; list them with `GET /api/{kind}s`.")
    return version


def _sync(tx: Tx, actor: Actor, loaded: Sequence[Function], unread: Sequence[str]) -> SyncResult:
    lock(tx, "compositions")  # a name is unique across compositions and functions
    functions = schema.functions
    before: dict[str, Function] = {row.name: row.function for row in tx.conn.execute(sa.select(functions))}
    names = [function.name for function in loaded]
    conflicts = set(tx.conn.execute(sa.select(compositions.c.name).where(compositions.c.name.in_(names))).scalars())
    new = {function.name: function for function in loaded if function.name not in conflicts}
    unread_names = {name for name, function in before.items() if name not in new and function.module in unread}
    deleted = sorted(before.keys() - new.keys() - unread_names)
    changed = [name for name in new if new[name] != before.get(name)]
    tx.conn.execute(sa.delete(functions).where(functions.c.name.in_([*deleted, *changed])))
    if changed:
        tx.conn.execute(sa.insert(functions), [{"name": name, "function": new[name]} for name in changed])
    created = sorted(new.keys() - before.keys())
    if changed or deleted:
        record(tx, actor, functions_changed(created, sorted(before.keys() & {*changed}), deleted))
    bump(tx, "functions")
    return SyncResult(tuple(created), tuple(deleted), tuple(sorted(conflicts)))


def _exists(tx: Tx, table: sa.Table, *conditions: ColumnElement[bool]) -> bool:
    return tx.conn.execute(sa.select(sa.literal(1)).select_from(table).where(*conditions)).first() is not None


def _version_with_label(label: str) -> Any:
    """Return a scalar subquery for the version of the item in the outer query that has `label`."""
    query = sa.select(composed_labels.c.version).where(
        composed_labels.c.composed_id == compositions.c.id, composed_labels.c.label == label
    )
    return query.correlate(compositions).scalar_subquery()


def _has_live_call_of(name: str) -> ColumnElement[bool]:
    """Return the condition that the newest version of an item, or one that has a label, calls `name`."""
    has_label = sa.exists().where(
        composed_labels.c.composed_id == _CALLS.c.composed_id, composed_labels.c.version == _CALLS.c.version
    )
    return sa.exists().where(
        _CALLS.c.name == name,
        _CALLS.c.composed_id == compositions.c.id,
        (_CALLS.c.version == compositions.c.newest) | has_label,
    )


def _load_page(conn: Connection, sizes: sa.Select[Any, Any, Any], limit: int, max_bytes: int) -> Page[LibraryItem]:
    """Return a page of items; `sizes` is the query for their keys and sizes, in order."""
    matching = conn.execute(sizes.limit(limit)).all()
    keys = [(row.id, row.version) for row in matching[: page_length((row.size for row in matching), max_bytes)]]
    by_key = {(item.id, item.version): item for item in _load_items(conn, _ITEMS.where(sa.tuple_(*_KEY).in_(keys)))}
    is_full = 0 < len(matching) == limit
    return Page((by_key[key] for key in keys if key in by_key), may_continue=is_full or len(keys) < len(matching))


def _load_items(conn: Connection, query: sa.Select[Any]) -> list[LibraryItem]:
    rows = conn.execute(query).mappings().all()
    ids = {row["id"] for row in rows}
    labels = conn.execute(sa.select(composed_labels).where(composed_labels.c.composed_id.in_(ids))).all() if ids else ()
    by_version = sorted((label.composed_id, label.version, label.label) for label in labels)
    return [
        _item_of(dict(row), tuple(label for *version, label in by_version if version == [row["id"], row["version"]]))
        for row in rows
    ]


def _item_of(row: dict[str, Any], labels: tuple[str, ...]) -> LibraryItem:
    kind, tree, model = row.pop("kind"), row.pop("tree"), row.pop("model")
    if kind == "prompt":
        return Prompt(**row, model=model, labels=labels)
    return Pipeline(**row, tree=tree, labels=labels)


def _kind(item: LibraryItem) -> str:
    return "prompt" if isinstance(item, Prompt) else "pipeline"
