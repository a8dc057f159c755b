"""Stores of both kinds, for every suite that holds for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signoff.stores.sql import SqlStore
from stores import opened


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    """Yield a store that was just made."""
    async with opened(url) as store:
        yield store


@pytest.fixture
async def other(url: str, store: SqlStore) -> AsyncIterator[SqlStore]:
    """Yield a second store on the same database, as another process would have it."""
    async with opened(url) as other:
        yield other
