"""A transaction as the adapters see it: rows and sums that are written at its end, and changes to publish."""

import os
import socket
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from operator import add, itemgetter
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Table

from signoff.core.fingerprint import fingerprint
from signoff.store import Topic
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.statements import insert_rows, insert_statement, upsert_statement

T = TypeVar("T")
# Processes on one PostgreSQL add to sums of their own, mostly, so that they do not wait for each other's commits.
SHARDS = 16


class Tx(msgspec.Struct):
    """A transaction.

    `now` is the database's time at its start, in microseconds. `changes` are the notifications to publish when it is
    committed.
    """

    conn: Connection
    now: int
    changes: list[tuple[Topic, str]] = []
    signer: ReceiptSigner | None = None
    """Access to the keys that sign receipts; None if this process cannot sign."""
    caught: dict[tuple[str, int], bool] = {}
    """Verdicts on planted items, by job and round: True if the item was rejected, sent back or corrected."""
    _added: dict[Table, list[dict[str, Any]]] = {}
    _missing: dict[Table, dict[Any, dict[str, Any]]] = {}
    _sums: dict[Table, dict[tuple[Any, ...], tuple[int, ...]]] = {}
    _at_end: dict[Callable[["Tx", list[Any]], None], list[Any]] = {}

    def at_end(self, function: Callable[["Tx", list[T]], None], item: T) -> None:
        """Call `function` once with all items, at the end of the whole group, before the sums are written.

        A lock that it takes then is held for a short time only, and comes after all locks of rows.
        """
        self._at_end.setdefault(function, []).append(item)

    def run_at_end(self) -> None:
        """Call the functions of `at_end`."""
        pending, self._at_end = self._at_end, {}
        for function, items in pending.items():
            function(self, items)

    def add(self, table: Table, row: dict[str, Any]) -> None:
        """Add a row. It is inserted with those of the whole group, at its end or when an operation calls `flush`."""
        self._added.setdefault(table, []).append(row)

    def added_to(self, table: Table) -> Sequence[dict[str, Any]]:
        """Return the rows that were added to a table, and are not inserted yet."""
        return self._added.get(table, ())

    def add_missing(self, table: Table, row: dict[str, Any]) -> None:
        """Add a row, unless the table has one with its primary key."""
        key = tuple([row[column.name] for column in table.primary_key])
        self._missing.setdefault(table, {}).setdefault(key, row)

    def add_to_sum(self, table: Table, group: tuple[Any, ...], amounts: tuple[int, ...]) -> None:
        """Add `amounts` to the row of `group` in a table of sums, at the end of the whole group of operations.

        The columns of the table are `key`, those of `group`, and those of `amounts`.
        """
        sums = self._sums.setdefault(table, {})
        sums[group] = tuple(map(add, sums[group], amounts)) if group in sums else amounts

    def flush_sums(self) -> None:
        """Write the sums. Rows that other processes may update too are locked in the order of tables and keys."""
        for table, sums in sorted(self._sums.items(), key=lambda item: item[0].name):
            text, names = upsert_statement(table, self.conn.dialect)
            columns = [column.name for column in table.c]
            shard = _shard() if self.conn.dialect.name == "postgresql" else 0
            rows = [dict(zip(columns, (_key_of(shard, group), *group, *sums[group]), strict=True)) for group in sums]
            rows.sort(key=itemgetter("key"))
            insert_rows(self.conn, text, [tuple(map(row.__getitem__, names)) for row in rows])

    def flush(self) -> None:
        """Insert the rows that were added so far. Rows that other processes may add too come in order of their keys.

        Rows of other operations are among them, so an operation must not call it where it may still be undone alone.
        """
        if not self._added and not self._missing:
            return
        if self.conn.in_nested_transaction():
            raise RuntimeError("The end of the savepoint could undo rows of other operations.")
        missing, self._missing = self._missing, {}
        for table, by_key in missing.items():
            self._insert(table, [by_key[key] for key in sorted(by_key)], if_missing=True)
        added, self._added = self._added, {}
        for table, rows in added.items():
            self._insert(table, rows)

    def _insert(self, table: Table, rows: Sequence[dict[str, Any]], *, if_missing: bool = False) -> None:
        text, names, json_names = insert_statement(table, self.conn.dialect, if_missing=if_missing)
        for row in rows:
            row.update((name, msgspec.json.encode(row[name])) for name in json_names if row.get(name) is not None)
        insert_rows(self.conn, text, [tuple(map(row.get, names)) for row in rows])


@cache
def _shard() -> int:
    """Return the shard of this process. Processes in containers often have the same id."""
    return zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % SHARDS


def _key_of(shard: int, group: tuple[Any, ...]) -> str:
    return f"{shard}:{fingerprint(msgspec.json.encode(group))}"
