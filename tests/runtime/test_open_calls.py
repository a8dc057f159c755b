"""Waiting calls end with the rights of their callers."""

import asyncio

import pytest

from signoff.core.access import Caller
from signoff.errors import Unauthorized
from signoff.runtime.open_calls import OpenCalls

pytestmark = pytest.mark.anyio


async def test_a_failure_of_the_store_does_not_end_the_checks_of_open_calls() -> None:
    failures = iter([OSError("disk I/O error"), Unauthorized()])

    async def refresh(_caller: Caller) -> Caller:
        raise next(failures)

    calls = OpenCalls(refresh)
    call = calls.add(Caller(user_id=1, token_id=1, role="user", email="ada@example.com"))
    checking = asyncio.create_task(calls.run())
    try:
        with pytest.raises(asyncio.CancelledError):
            while call.failure is None:
                assert not checking.done()
                calls.on_change()
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert isinstance(call.take_cancellation(), Unauthorized)
    finally:
        checking.cancel()
