"""The history of a round: what was asked and told, a JSON line each, written as it happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

Line = dict[str, Any]


class History:
    """Lines in a file; `what` says which kind: asked, told, cancelled, looked, reviewed, hooked, fault, ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = Counter[str]()
        """How many lines of each kind there are."""
        self._file = path.open("ab", buffering=0)  # a line that was told is in the file, whatever happens next

    def tell(self, what: str, **more: Any) -> None:
        """Adds a line, with the time in seconds since 1970."""
        self.counts[what] += 1
        self._file.write(msgspec.json.encode({"at": time.time(), "what": what} | more) + b"\n")

    def close(self) -> None:
        """Adds no more."""
        self._file.close()


def read(path: Path) -> Iterator[Line]:
    """The lines, in the order in which they were written."""
    with path.open("rb") as file:
        for line in file:
            yield msgspec.json.decode(line)
