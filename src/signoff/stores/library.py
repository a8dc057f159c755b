"""Prompts, pipelines and registered functions as SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import calls_of
from signoff.errors import LibraryItemNotFound, NameTaken
from signoff.store import SyncResult
from signoff.stores.database import Database
from signoff.stores.schema import (
    composed_calls,
    composed_labels,
    composed_versions,
    compositions,
    functions,
)
from signoff.stores.versions import bump, change, lock
from signoff.stores.writer import Tx

_HEAD = (compositions.c.id, compositions.c.kind, compositions.c.name, compositions.c.user_id, compositions.c.shared)
_BODY = tuple(column for column in composed_versions.c if column.name != "composed_id")
_WHOLE = sa.select(*_HEAD, *_BODY).join(composed_versions, composed_versions.c.composed_id == compositions.c.id)
_CALLED = composed_calls.alias("called")


class SqlLibrary:
    """Compositions in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, composed: LibraryItem, *, label: str | None = PRODUCTION) -> LibraryItem:
        """See `store.Compositions`."""
        return await self._database.write(lambda tx: _put(tx, composed, label))

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        """See `store.Compositions`."""
        is_it = compositions.c.id == key if isinstance(key, int) else compositions.c.name == key
        query = _WHOLE.where(is_it, composed_versions.c.version == (at if isinstance(at, int) else _labelled(at)))
        found = await self._database.read(lambda conn, _: _all(conn, query))
        return found[0] if found else None

    async def list(self, which: LibraryFilter) -> Sequence[LibraryItem]:
        """See `store.Compositions`."""
        query = _WHOLE.where(composed_versions.c.version == _labelled(PRODUCTION), compositions.c.name > which.after)
        if which.kind is not None:
            query = query.where(compositions.c.kind == which.kind)
        if which.user_id is not None:
            query = query.where((compositions.c.user_id == which.user_id) | compositions.c.shared)
        if which.calls is not None:
            query = query.where(_calls(which.calls))
        query = query.order_by(compositions.c.name).limit(which.limit)
        return await self._database.read(lambda conn, _: _all(conn, query))

    async def versions(self, composed_id: int, *, before: int | None = None, limit: int = 50) -> Sequence[LibraryItem]:
        """See `store.Compositions`."""
        query = _WHOLE.where(compositions.c.id == composed_id)
        if before is not None:
            query = query.where(composed_versions.c.version < before)
        query = query.order_by(composed_versions.c.version.desc()).limit(limit)
        return await self._database.read(lambda conn, _: _all(conn, query))

    async def label(self, composed_id: int, label: str, version: int | None) -> bool:
        """See `store.Compositions`."""
        there = composed_versions.c.composed_id == composed_id, composed_versions.c.version == version
        named = composed_labels.c.composed_id == composed_id, composed_labels.c.label == label

        def move(tx: Tx) -> bool:
            lock(tx, "compositions")
            if version is not None and not _exists(tx, composed_versions, *there):
                return False
            moved = tx.conn.execute(sa.delete(composed_labels).where(*named)).rowcount == 1
            if version is not None:
                row = {"composed_id": composed_id, "label": label, "version": version}
                tx.conn.execute(sa.insert(composed_labels).values(row))
            if moved or version is not None:
                bump(tx, "compositions")
            return moved or version is not None

        return await self._database.write(move)

    async def share(self, composed_id: int, *, shared: bool) -> bool:
        """See `store.Compositions`."""
        update = sa.update(compositions).where(compositions.c.id == composed_id).values(shared=shared)
        return await self._database.write(lambda tx: change(tx, "compositions", update))

    async def drop(self, composed_id: int) -> bool:
        """See `store.Compositions`."""

        def drop(tx: Tx) -> bool:
            lock(tx, "compositions")
            if not tx.conn.execute(sa.delete(compositions).where(compositions.c.id == composed_id)).rowcount:
                return False
            for table in (composed_versions, composed_labels, composed_calls):
                tx.conn.execute(sa.delete(table).where(table.c.composed_id == composed_id))
            bump(tx, "compositions")
            return True

        return await self._database.write(drop)

    async def functions(self) -> Sequence[Function]:
        """See `store.Compositions`."""
        query = sa.select(functions.c.function).order_by(functions.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def sync(self, found: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        """See `store.Compositions`."""
        return await self._database.write(lambda tx: _synced(tx, found, unread))


def _put(tx: Tx, composed: LibraryItem, label: str | None) -> LibraryItem:
    lock(tx, "compositions")
    if composed.id == 0:
        composed_id, version = _new(tx, composed), 1
    else:
        composed_id, version = composed.id, _next(tx, composed)
    row = {"composed_id": composed_id, "version": version, "body": composed.body, "message": composed.message}
    own = {"model": composed.model} if isinstance(composed, Prompt) else {"tree": composed.tree}
    tx.conn.execute(sa.insert(composed_versions).values(row | own | {"created_at": tx.now}))
    names = set[str]() if isinstance(composed, Prompt) else {call.name for call in calls_of(composed.tree)}
    called = [{"composed_id": composed_id, "version": version, "name": name} for name in sorted(names)]
    if called:
        tx.conn.execute(sa.insert(composed_calls), called)
    labels = {label, PRODUCTION} if version == 1 else {label}
    for moved in sorted(filter(None, labels)):
        there = composed_labels.c.composed_id == composed_id, composed_labels.c.label == moved
        tx.conn.execute(sa.delete(composed_labels).where(*there))
        tx.conn.execute(sa.insert(composed_labels).values(composed_id=composed_id, label=moved, version=version))
    bump(tx, "compositions")
    query = _WHOLE.where(compositions.c.id == composed_id, composed_versions.c.version == version)
    return _all(tx.conn, query)[0]


def _new(tx: Tx, composed: LibraryItem) -> int:
    """The id of a new one. Raises NameTaken."""
    name = composed.name
    if _exists(tx, compositions, compositions.c.name == name) or _exists(tx, functions, functions.c.name == name):
        raise NameTaken(f"{name!r} is the name of a prompt, a pipeline or a function already.")
    values = {
        "kind": _kind(composed),
        "name": name,
        "user_id": composed.user_id,
        "shared": composed.shared,
        "newest": 1,
    }
    return tx.conn.execute(sa.insert(compositions).values(values).returning(compositions.c.id)).scalar_one()


def _next(tx: Tx, composed: LibraryItem) -> int:
    """The number of its next version. Raises ComposedNotFound."""
    is_it = compositions.c.id == composed.id, compositions.c.kind == _kind(composed)
    values = {"newest": compositions.c.newest + 1, "shared": composed.shared}
    update = sa.update(compositions).where(*is_it).values(values).returning(compositions.c.newest)
    version = tx.conn.execute(update).scalar_one_or_none()
    if version is None:
        raise LibraryItemNotFound(f"There is no {_kind(composed)} with the id {composed.id}.")
    return version


def _synced(tx: Tx, found: Sequence[Function], unread: Sequence[str]) -> SyncResult:
    lock(tx, "compositions")  # a name is one thing, in whichever table it stands
    before: dict[str, Function] = {row.name: row.function for row in tx.conn.execute(sa.select(functions))}
    names = [function.name for function in found]
    taken = set(tx.conn.execute(sa.select(compositions.c.name).where(compositions.c.name.in_(names))).scalars())
    wanted = {function.name: function for function in found if function.name not in taken}
    kept = {name for name, function in before.items() if name not in wanted and function.module in unread}
    deleted = sorted(before.keys() - wanted.keys() - kept)
    changed = [name for name in wanted if wanted[name] != before.get(name)]
    tx.conn.execute(sa.delete(functions).where(functions.c.name.in_([*deleted, *changed])))
    if changed:
        tx.conn.execute(sa.insert(functions), [{"name": name, "function": wanted[name]} for name in changed])
    bump(tx, "functions")
    return SyncResult(tuple(sorted(wanted.keys() - before.keys())), tuple(deleted), tuple(sorted(taken)))


def _exists(tx: Tx, table: sa.Table, *conditions: ColumnElement[bool]) -> bool:
    return tx.conn.execute(sa.select(sa.literal(1)).select_from(table).where(*conditions)).first() is not None


def _labelled(label: str) -> Any:
    """The version that `label` names."""
    query = sa.select(composed_labels.c.version).where(
        composed_labels.c.composed_id == compositions.c.id, composed_labels.c.label == label
    )
    return query.correlate(compositions).scalar_subquery()


def _calls(name: str) -> ColumnElement[bool]:
    """Whether one of its versions that can still be asked for by a label, or the newest, calls `name`."""
    is_labelled = sa.exists().where(
        composed_labels.c.composed_id == _CALLED.c.composed_id, composed_labels.c.version == _CALLED.c.version
    )
    return sa.exists().where(
        _CALLED.c.name == name,
        _CALLED.c.composed_id == compositions.c.id,
        (_CALLED.c.version == compositions.c.newest) | is_labelled,
    )


def _all(conn: Connection, query: sa.Select[Any]) -> list[LibraryItem]:
    rows = conn.execute(query).mappings().all()
    ids = {row["id"] for row in rows}
    labels = conn.execute(sa.select(composed_labels).where(composed_labels.c.composed_id.in_(ids))).all() if ids else ()
    named = sorted((label.composed_id, label.version, label.label) for label in labels)
    return [
        _composed(dict(row), tuple(label for *place, label in named if place == [row["id"], row["version"]]))
        for row in rows
    ]


def _composed(row: dict[str, Any], labels: tuple[str, ...]) -> LibraryItem:
    kind, tree, model = row.pop("kind"), row.pop("tree"), row.pop("model")
    if kind == "prompt":
        return Prompt(**row, model=model, labels=labels)
    return Pipeline(**row, tree=tree, labels=labels)


def _kind(composed: LibraryItem) -> str:
    return "prompt" if isinstance(composed, Prompt) else "pipeline"
