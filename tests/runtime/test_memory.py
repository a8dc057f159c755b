"""Garbage that few objects hold, and much memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from signoff.infra import memory
from signoff.infra.memory import collect_if_grown, resident_mb


class Context:
    """Object that refers to itself, as the context of a template does by its macros."""

    def __init__(self, size_bytes: int) -> None:
        self.itself, self.text = self, b"x" * size_bytes


@pytest.fixture(autouse=True)
def without_collections() -> Any:
    """Let no other collection happen meanwhile."""
    gc.disable()
    yield
    gc.enable()


def test_garbage_is_collected_once_memory_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROWN_MB", 16)
    base_mb = resident_mb()
    small = weakref.ref(Context(1000))
    assert collect_if_grown(base_mb) <= base_mb
    assert small() is not None
    large = weakref.ref(Context(64 * 2**20))
    collect_if_grown(base_mb)
    assert (small(), large()) == (None, None)
