"""Orders of the nemesis to one process, in shared memory."""

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
    """The point at which the process is to `kill` or `stop` itself, and the error of its clock in seconds."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @property
    def clock_shift(self) -> float:
        """Return the error of the process's clock in seconds; positive is ahead."""
        return _SHIFT.unpack_from(self._memory)[0]

    @clock_shift.setter
    def clock_shift(self, seconds: float) -> None:
        _SHIFT.pack_into(self._memory, 0, seconds)

    def give(self, action: str, point: str) -> None:
        """Order the process to `kill` or `stop` itself, once, when it reaches `point`."""
        _POINT.pack_into(self._memory, _SHIFT.size, action.encode(), point.encode())

    def at(self, point: str) -> str:
        """Return the order for `point`, or an empty string."""
        action, ordered_point = (part.rstrip(b"\0").decode() for part in _POINT.unpack_from(self._memory, _SHIFT.size))
        return action if ordered_point == point else ""

    def clear(self) -> None:
        """Cancel the order."""
        self.give("", "")

    def close(self) -> None:
        """Close the shared memory."""
        self._memory.close()
