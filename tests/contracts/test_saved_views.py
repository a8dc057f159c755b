"""Contract tests of stores: views of pages that users have saved."""

from __future__ import annotations

import pytest

from signoff.core.saved_views import MAX_VIEWS, SavedView
from signoff.errors import Conflict
from support.stores import AStore

pytestmark = pytest.mark.anyio


async def test_views_are_saved_by_user_page_and_name_and_replaced(store: AStore, other: AStore) -> None:
    views = [SavedView(page="jobs", name=name, query=f"q={name}") for name in ("b", "a")]
    for view in views:
        await store.views.put(1, view)
    await other.views.put(1, SavedView(page="usage", name="a", query="by=model"))
    await other.views.put(2, SavedView(page="jobs", name="a", query=""))
    assert await other.views.of_user(1, "jobs") == views[::-1]

    newer = SavedView(page="jobs", name="a", query="status=fail")
    await other.views.put(1, newer)
    assert await store.views.of_user(1, "jobs") == [newer, views[0]]

    assert await store.views.drop(1, "jobs", "a")
    assert not await other.views.drop(1, "jobs", "a")
    assert await other.views.of_user(1, "jobs") == [views[0]]
    assert len(await other.views.of_user(2, "jobs")) == 1


async def test_a_user_saves_a_bounded_number_of_views_of_a_page(store: AStore) -> None:
    for number in range(MAX_VIEWS):
        await store.views.put(1, SavedView(page="jobs", name=f"{number:03}", query=""))
    with pytest.raises(Conflict):
        await store.views.put(1, SavedView(page="jobs", name="one more", query=""))
    await store.views.put(1, SavedView(page="jobs", name="000", query="q=again"))
    assert len(await store.views.of_user(1, "jobs")) == MAX_VIEWS
