"""What models of this host wrote and how they failed: a bounded file for each, which all processes read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

Level = Literal["info", "error"]

MAX_FILE_BYTES = 1024 * 1024
MAX_TEXT_CHARS = 8192


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of a log; `at` is in microseconds since 1970."""

    at: int
    level: Level
    text: str


class Logs:
    """Logs by the names of models, in `folder`. `clock` gives microseconds since 1970."""

    def __init__(self, folder: Path, clock: Callable[[], int]) -> None:
        self._folder = folder
        self._clock = clock

    def add(self, name: str, level: Level, text: str) -> None:
        """Writes a line. A log that cannot be written is done without; one that grows too long loses its older half."""
        line = msgspec.json.encode(Entry(self._clock(), level, text[:MAX_TEXT_CHARS])) + b"\n"
        path = self._path(name)
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line)
                size_bytes = os.fstat(file).st_size
            finally:
                os.close(file)
            if size_bytes > MAX_FILE_BYTES:
                _halve(path)

    async def read(self, name: str) -> list[Entry]:
        """All lines that are kept, oldest first."""
        return await asyncio.to_thread(_entries, self._path(name))

    async def clean(self, name: str) -> None:
        """Forgets all lines."""
        await asyncio.to_thread(self._path(name).unlink, missing_ok=True)

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
        return self._folder / f"{digest[:32]}.log"


def _halve(path: Path) -> None:
    kept = path.read_bytes()[-MAX_FILE_BYTES // 2 :].partition(b"\n")[2]
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(kept)
    draft.chmod(0o600)
    draft.replace(path)


def _entries(path: Path) -> list[Entry]:
    entries = list[Entry]()
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return entries
    for line in lines:
        with suppress(ValueError):  # a line that was cut as the disk was full
            entries.append(msgspec.json.decode(line, type=Entry))
    return entries
