"""Fixtures for the tests of upgrades."""

from __future__ import annotations

import pytest

from upgrades.last_release import NotBuiltError, Release, last_release


@pytest.fixture(scope="session")
def old() -> Release:
    """Return the last release, installed; fail with what helps if that cannot be."""
    try:
        return last_release()
    except NotBuiltError as error:
        pytest.fail(str(error), pytrace=False)
