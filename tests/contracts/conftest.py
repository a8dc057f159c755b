"""Stores of every kind, for the contract tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.stores import AStore, opened


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    match request.param:
        case "postgres":
            return request.getfixturevalue("postgres_url")
        case kind:
            return f"{kind}:///{tmp_path}/store.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[AStore]:
    """Yield an empty store."""
    async with opened(url) as store:
        yield store


@pytest.fixture
async def other(url: str, store: AStore) -> AsyncIterator[AStore]:
    """Yield a second store on the same database, as another process would open it."""
    async with opened(url) as other:
        yield other
