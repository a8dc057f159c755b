"""What a model wrote: each line is told of, and the last ones are kept for when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MAX_LINE_BYTES = 8192
TAIL_LINES = 10


class ModelLog:
    """The last lines of a model; `tell` hears of each."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lines = deque[str](maxlen=TAIL_LINES)

    def add(self, line: bytes) -> None:
        """Take a line; one that is too long becomes several."""
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            piece = line[start : start + MAX_LINE_BYTES]
            text = piece.decode(errors="replace").rstrip("\r")
            self._lines.append(text)
            self._tell(text)

    def tail(self) -> str:
        """The last lines as text."""
        return "\n".join(self._lines)


class LineSplitter:
    """Cuts what one process writes into lines of a log, which may be that of several processes."""

    def __init__(self, log: ModelLog) -> None:
        self._log = log
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what came; a line that does not end is cut."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log.add(line)
        if len(self._rest) >= MAX_LINE_BYTES:
            self.end()

    def end(self) -> None:
        """Take what is left as a line."""
        if self._rest:
            self._log.add(self._rest)
        self._rest = b""
