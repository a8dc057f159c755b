"""Fail a test during which asyncio reports an exception that nobody retrieved, or a task that nobody awaited.

asyncio only logs these faults, when the object is collected, so the test that fails can be a later one than the one
that is at fault. The runner of async tests notices exceptions while its loop runs; this module sees what comes later,
and what happens in tests that run a loop of their own.
"""

import gc
import logging
from collections.abc import Generator

import pytest

FAULTS = ("never retrieved", "was destroyed but it is pending")


class FaultCollector(logging.Handler):
    """A handler that collects the faults that asyncio logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._faults = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Store the message of `record`, with its traceback, if it is about one of FAULTS."""
        if any(fault in record.getMessage() for fault in FAULTS):
            self._faults.append(self.format(record))

    def take(self) -> list[str]:
        """Return the faults since the last call."""
        faults, self._faults = self._faults, []
        return faults


COLLECTOR = FaultCollector()


def pytest_configure() -> None:
    """Begin to collect."""
    logging.getLogger("asyncio").addHandler(COLLECTOR)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Fail the test if there were faults; before the process ends, look at the objects that are not collected yet."""
    yield
    if nextitem is None:
        gc.collect()
    if faults := COLLECTOR.take():
        pytest.fail("asyncio reported:\n" + "\n".join(faults), pytrace=False)
