"""History of a run: a hash of everything that was observed, and its last lines for debugging."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, deque

from simulation.loop import World

MAX_LINES = 4000


class History:
    """The observations of callers, receivers and the store, in order."""

    def __init__(self, world: World, *, aloud: bool = False) -> None:
        self.counts = Counter[str]()
        self._world = world
        self._aloud = aloud
        self._hash = hashlib.blake2b(digest_size=16)
        self._lines = deque[str](maxlen=MAX_LINES)

    def note(self, kind: str, *facts: object) -> None:
        """Record one observation."""
        line = f"{self._world.now:11.6f} {kind} {facts!r}"
        self.counts[kind] += 1
        self._hash.update(line.encode())
        self._lines.append(line)
        if self._aloud:
            sys.stdout.write(line + "\n")

    def digest(self) -> str:
        """Return the hash of the history; equal histories have equal digests."""
        return self._hash.hexdigest()

    def about(self, text: str) -> list[str]:
        """Return those of the last lines that mention `text`."""
        return [line for line in self._lines if text in line]
