"""Log of a model: each line goes to a callback, and the last ones are kept for error messages."""

from collections import deque
from collections.abc import Callable

MAX_LINE_BYTES = 8192
TAIL_LINES = 10


class ModelLog:
    """Log of one model. `on_line` is called with each line; the last TAIL_LINES lines are kept."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._lines = deque[str](maxlen=TAIL_LINES)

    def add(self, line: bytes) -> None:
        """Add a line. A line longer than MAX_LINE_BYTES is split into several."""
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            piece = line[start : start + MAX_LINE_BYTES]
            text = piece.decode(errors="replace").rstrip("\r")
            self._lines.append(text)
            self._on_line(text)

    def tail(self) -> str:
        """Return the last lines, separated by line breaks."""
        return "\n".join(self._lines)


class LineSplitter:
    """Splitter of one process's output into lines of a log, which several processes may share."""

    def __init__(self, log: ModelLog) -> None:
        self._log = log
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Add `data`, which need not end at a line break. A line that gets too long is cut."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log.add(line)
        if len(self._rest) >= MAX_LINE_BYTES:
            self.end()

    def end(self) -> None:
        """Add the rest as a line."""
        if self._rest:
            self._log.add(self._rest)
        self._rest = b""
