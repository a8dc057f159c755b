"""The watch over a connection: it ends with the first failure, and with a cancellation that a client has lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from signoff.transports.liveness import LivenessWatch

pytestmark = pytest.mark.anyio


async def succeed() -> None:
    """Find the connection alive."""


async def test_a_reported_failure_ends_the_watch() -> None:
    watch = LivenessWatch()
    watch.fail(ConnectionError("It is lost."))
    with pytest.raises(ConnectionError, match="It is lost"):
        await watch.run(succeed)


async def test_a_cancellation_that_a_client_has_lost_ends_the_watch() -> None:
    async def connect_and_watch() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # as `asyncio.wait_for` of Python 3.11 may
        await LivenessWatch().run(succeed)

    task = asyncio.ensure_future(connect_and_watch())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
