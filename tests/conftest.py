"""Fixtures for all tests. Every test process imports this module, so it imports nothing of the product."""

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

COLLECT_AFTER = 20_000
pytest_plugins = ["plugins.services", "plugins.tiers", "plugins.repeats", "plugins.unretrieved"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Collect no garbage while tests are imported, exempt what is imported, and collect as seldom as a server does."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)
        gc.enable()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run async tests as the server runs: on asyncio with uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """Return the file in which a model records each of its starts; afterwards, end the processes that are left."""
    from fakes import programs

    journal = tmp_path / "journal"
    yield journal
    for pid in (pid for pids in programs.starts(journal) for pid in programs.alive(pids)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the Hypothesis plug-in if no test uses it, because its summary imports all of Hypothesis."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and not plugins.hasplugin("dsession"):
        plugins.unregister(name="hypothesispytest")
