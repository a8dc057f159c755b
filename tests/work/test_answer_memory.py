"""Memory of finished calls: freed at once, because the garbage collector comes seldom."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from signoff.work import call
from support.live_server import chat, live

pytestmark = pytest.mark.anyio


ATTEMPTS = weakref.WeakSet[Any]()


class TrackedAttempt(call.Attempt):
    """Attempt that can be looked for after its call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ATTEMPTS.add(self)


@pytest.fixture
def without_collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test without garbage collections, with attempts that are tracked."""
    monkeypatch.setattr(call, "Attempt", TrackedAttempt)
    ATTEMPTS.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize(
    ("model", "stream", "headers"),
    [
        ("echo", False, {}),
        ("echo", True, {}),
        ("echo/cut", False, {}),
        ("echo/cut", True, {}),
        ("echo/status=400", False, {}),
        ("echo", True, {"idempotency-key": "k"}),
        ("echo/status=400", False, {"idempotency-key": "k"}),
    ],
)
async def test_a_call_that_is_over_is_not_kept(
    model: str, stream: bool, headers: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", model, stream=stream), headers=headers)
        for _ in range(200):
            if not ATTEMPTS:
                break
            await asyncio.sleep(0.01)
        assert [sorted({type(each).__name__ for each in gc.get_referrers(attempt)}) for attempt in ATTEMPTS] == []
