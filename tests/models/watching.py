"""Whether processes live, and waiting until something is so."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MODEL = Path(__file__).with_name("httpmodel.py")
PATIENCE_SECONDS = 20


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody has noticed yet, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def starts(journal: Path) -> list[list[int]]:
    """For each start of a model that kept this journal: its process id, and those of its children."""
    if not journal.exists():
        return []
    return [[int(pid) for pid in line.split()] for line in journal.read_text().splitlines()]


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


async def until(is_so: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
