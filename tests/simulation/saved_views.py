"""In-memory views of pages that users have saved."""

from __future__ import annotations

from signoff.core.saved_views import MAX_VIEWS, SavedView
from signoff.errors import Conflict
from simulation.tables import Connection, Tables, Tx


class MemorySavedViews:
    """In-memory implementation of `accounts.SavedViews`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def of_user(self, user_id: int, page: str) -> list[SavedView]:
        def read(_: Tx) -> list[SavedView]:
            return [view for key, view in sorted(self._tables.views.items()) if key[:2] == (user_id, page)]

        return await self._connection.send(read, writes=False)

    async def put(self, user_id: int, view: SavedView) -> None:
        def put(_: Tx) -> None:
            others = [key for key in self._tables.views if key[:2] == (user_id, view.page) and key[2] != view.name]
            if len(others) >= MAX_VIEWS:
                raise Conflict("too many views")
            self._tables.views[user_id, view.page, view.name] = view

        await self._connection.send(put, writes=True)

    async def drop(self, user_id: int, page: str, name: str) -> bool:
        def drop(_: Tx) -> bool:
            return self._tables.views.pop((user_id, page, name), None) is not None

        return await self._connection.send(drop, writes=True)
