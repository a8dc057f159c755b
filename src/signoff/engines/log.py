"""What a model wrote, as far as it is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MAX_LINES = 2000
MAX_LINE_BYTES = 8192
TAIL_LINES = 10


class Log:
    """The last lines of a model, each with the microseconds since 1970 that `clock` told; `tell` hears of them too."""

    def __init__(self, clock: Callable[[], int], tell: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._tell = tell
        self._lines = deque[tuple[int, str]](maxlen=MAX_LINES)

    def add(self, line: bytes) -> None:
        """Keep a line; one that is too long becomes several."""
        at = self._clock()
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            piece = line[start : start + MAX_LINE_BYTES]
            text = piece.decode(errors="replace").rstrip("\r")
            self._lines.append((at, text))
            if self._tell is not None:
                self._tell(text)

    def lines(self) -> list[tuple[int, str]]:
        """All lines that are kept, oldest first."""
        return list(self._lines)

    def tail(self) -> str:
        """The last lines as text."""
        return "\n".join(text for _, text in list(self._lines)[-TAIL_LINES:])


class Scribe:
    """Cuts what one process writes into lines of a log, which may be that of several processes."""

    def __init__(self, log: Log) -> None:
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
