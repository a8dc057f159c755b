"""Rules of decision 50: what a migration changes that the code of the release before cannot work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa


@dataclass(frozen=True)
class Table:
    """A table as the database describes it."""

    columns: Mapping[str, Mapping[str, Any]]
    primary_key: tuple[str, ...]
    unique: frozenset[tuple[str, ...]]
    """The columns of each unique constraint and of each unique index."""
    foreign_keys: frozenset[tuple[str, ...]]
    checks: frozenset[str]


def tables_of(conn: sa.Connection) -> dict[str, Table]:
    """Return all tables by name."""
    inspector = sa.inspect(conn)
    return {name: _table(inspector, name) for name in inspector.get_table_names()}


def _table(inspector: sa.Inspector, name: str) -> Table:
    unique = [tuple(each["column_names"]) for each in inspector.get_unique_constraints(name)]
    unique += [_key(index) for index in inspector.get_indexes(name) if index["unique"]]
    return Table(
        columns={column["name"]: column for column in inspector.get_columns(name)},
        primary_key=tuple(inspector.get_pk_constraint(name)["constrained_columns"]),
        unique=frozenset(unique),
        foreign_keys=frozenset(tuple(key["constrained_columns"]) for key in inspector.get_foreign_keys(name)),
        checks=frozenset(str(check["sqltext"]) for check in inspector.get_check_constraints(name)),
    )


def _key(index: Any) -> tuple[str, ...]:
    """Return the columns of an index; of an expression, its text."""
    return tuple(map(str, index.get("expressions") or index["column_names"]))


def contractions(before: Mapping[str, Table], after: Mapping[str, Table]) -> list[str]:
    """Return what a migration from `before` to `after` takes away or demands, as phrases; none if it only expands."""
    phrases = [f"drops the table {name}" for name in sorted({*before} - {*after})]
    for name in sorted({*before} & {*after}):
        phrases += _contractions_of_table(name, before[name], after[name])
    return phrases


def _contractions_of_table(name: str, before: Table, after: Table) -> Iterator[str]:
    for column in sorted({*before.columns} - {*after.columns}):
        yield f"drops the column {name}.{column}"
    for column in sorted({*after.columns} - {*before.columns}):
        if _must_be_given(after.columns[column]):
            yield f"adds the column {name}.{column}, which is NOT NULL and has no default on the server"
    yield from _changed_columns(name, before, after)
    yield from _new_constraints(name, before, after)


def _changed_columns(name: str, before: Table, after: Table) -> Iterator[str]:
    for column in sorted({*before.columns} & {*after.columns}):
        old, new = before.columns[column], after.columns[column]
        if str(old["type"]) != str(new["type"]):
            yield f"changes the type of {name}.{column} from {old['type']} to {new['type']}"
        if _must_be_given(new) and not _must_be_given(old):
            yield f"makes {name}.{column} NOT NULL, or drops its default"


def _new_constraints(name: str, before: Table, after: Table) -> Iterator[str]:
    if before.primary_key != after.primary_key:
        yield f"changes the primary key of {name}"
    for kind in ("unique", "foreign_keys", "checks"):
        for added in sorted(getattr(after, kind) - getattr(before, kind)):
            if not _is_of_new_column(added, before, after):
                yield f"adds to {name} what older code may break ({kind.replace('_', ' ')}): {added}"


def _must_be_given(column: Mapping[str, Any]) -> bool:
    return not column["nullable"] and column["default"] is None and column.get("autoincrement") is not True


def _is_of_new_column(constraint: tuple[str, ...] | str, before: Table, after: Table) -> bool:
    """Return True for a constraint with a new column that may be null: the rows of older code have null there."""
    if isinstance(constraint, str):
        return False
    new = [name for name in constraint if name in after.columns and name not in before.columns]
    return any(after.columns[name]["nullable"] for name in new)
