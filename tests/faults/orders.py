"""Orders: what the nemesis tells one process, in memory that both see."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

POINTS = (
    "after-claim",
    "after-answer",
    "before-commit",
    "after-commit",
    "after-settle",
    "after-decide",
    "before-release",
    "after-post",
)
_SHIFT = struct.Struct("d")
_POINT = struct.Struct("8s24s")
_SIZE = _SHIFT.size + _POINT.size


class Orders:
    """At which point the process is to `kill` or `stop` itself, and by how many seconds it mistakes the time."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @property
    def clock_shift(self) -> float:
        """Seconds by which its clock is wrong."""
        return _SHIFT.unpack_from(self._memory)[0]

    @clock_shift.setter
    def clock_shift(self, seconds: float) -> None:
        _SHIFT.pack_into(self._memory, 0, seconds)

    def give(self, how: str, point: str) -> None:
        """The process is to do that to itself when it comes to the point, once."""
        _POINT.pack_into(self._memory, _SHIFT.size, how.encode(), point.encode())

    def at(self, point: str) -> str:
        """What it is to do there, if anything."""
        how, where = (part.rstrip(b"\0").decode() for part in _POINT.unpack_from(self._memory, _SHIFT.size))
        return how if where == point else ""

    def clear(self) -> None:
        """Whatever was to be done at a point is not."""
        self.give("", "")

    def close(self) -> None:
        """Lets the memory go."""
        self._memory.close()
