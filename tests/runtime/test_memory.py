"""Garbage that few objects hold, and much memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest

from signoff.infra import memory
from signoff.infra.memory import CALM_CHECKS, GarbageWatch


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


def test_garbage_is_collected_as_memory_grows_and_once_more_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROWN_MB", 16)
    watch = GarbageWatch()
    small = weakref.ref(Context(1000))
    watch.check()
    assert small() is not None
    large = weakref.ref(Context(64 * 2**20))
    watch.check()
    assert (small(), large()) == (None, None)
    late = weakref.ref(Context(1000))
    for _ in range(CALM_CHECKS):
        watch.check()
    assert late() is None
    later = weakref.ref(Context(1000))
    for _ in range(2 * CALM_CHECKS):
        watch.check()
    assert later() is not None


def test_the_memory_of_large_objects_returns_to_the_system() -> None:
    program = """
from signoff.infra.memory import resident_mb, return_large_blocks
return_large_blocks()
large = bytearray(b"x" * 30_000_000)  # its end would raise the size from which memory is returned
del large
texts = [b"x" * 20_000_000 for _ in range(8)]
kept = [b"y" * 500_000 for _ in range(10)]  # above them in the heap, if they are in one
full_mb = resident_mb()
del texts
print(full_mb - resident_mb())
"""
    freed_mb = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120).stdout
    assert int(freed_mb) > 120
