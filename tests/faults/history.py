"""History of a round: one JSON line for each request, response and fault, written as it happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

Line = dict[str, Any]


class History:
    """An append-only file of lines. The type of a line is in its `what`: asked, told, cancelled, looked, reviewed, ….

    `asked` is a request of a caller, `told` its response, `looked` a read of a held job, and `hooked` a webhook.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = Counter[str]()
        """The number of lines of each type."""
        self._file = path.open("ab", buffering=0)  # unbuffered: a recorded line is in the file whatever happens next

    def record(self, line_type: str, **fields: Any) -> None:
        """Append a line, with the time in seconds since 1970."""
        self.counts[line_type] += 1
        self._file.write(msgspec.json.encode({"at": time.time(), "what": line_type} | fields) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Iterator[Line]:
    """Yield the lines in the order in which they were written."""
    with path.open("rb") as file:
        for line in file:
            yield msgspec.json.decode(line)
