"""Views of pages that users have saved, in SQL."""

import sqlalchemy as sa

from signoff.core.saved_views import MAX_VIEWS, SavedView
from signoff.errors import Conflict
from signoff.stores.database import Database
from signoff.stores.people_schema import saved_views
from signoff.stores.transaction import Tx
from signoff.stores.versions import lock


class SqlSavedViews:
    """Saved views in a SQL database; see `accounts.SavedViews`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_user(self, user_id: int, page: str) -> list[SavedView]:
        """See `accounts.SavedViews`."""
        columns = (saved_views.c.page, saved_views.c.name, saved_views.c.query)
        query = sa.select(*columns).where(saved_views.c.user_id == user_id, saved_views.c.page == page)
        query = query.order_by(saved_views.c.name).limit(MAX_VIEWS)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [SavedView(**row) for row in rows]

    async def put(self, user_id: int, view: SavedView) -> None:
        """See `accounts.SavedViews`."""
        of_page = (saved_views.c.user_id == user_id) & (saved_views.c.page == view.page)
        others = sa.select(sa.func.count()).where(of_page, saved_views.c.name != view.name)

        def put(tx: Tx) -> None:
            lock(tx, "people")
            if tx.conn.execute(others).scalar_one() >= MAX_VIEWS:
                raise Conflict(f"A user may save at most {MAX_VIEWS} views of a page; delete one first.")
            tx.conn.execute(sa.delete(saved_views).where(of_page, saved_views.c.name == view.name))
            row = {"user_id": user_id, "page": view.page, "name": view.name, "query": view.query}
            tx.conn.execute(sa.insert(saved_views).values(row))

        await self._database.write(put)

    async def drop(self, user_id: int, page: str, name: str) -> bool:
        """See `accounts.SavedViews`."""
        is_view = [saved_views.c.user_id == user_id, saved_views.c.page == page, saved_views.c.name == name]
        delete = sa.delete(saved_views).where(*is_view).returning(saved_views.c.name)
        return await self._database.write(lambda tx: tx.conn.execute(delete).first() is not None)
