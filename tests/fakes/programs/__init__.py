"""Programs that act as models, and functions that inspect their processes."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fakes.http_server import LIMIT_SECONDS

_FOLDER = Path(__file__).parent
HTTP_MODEL = _FOLDER / "http_model.py"
JSON_LINES_MODEL = _FOLDER / "json_lines_model.py"
PLAIN_LINES_MODEL = _FOLDER / "plain_lines_model.py"
ENGINE_OWNER = _FOLDER / "engine_owner.py"


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie, which nobody has waited for yet, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def starts(journal: Path) -> list[list[int]]:
    """Return the process ids of each start of a model that kept this journal: its own, and those of its children."""
    if not journal.exists():
        return []
    return [[int(pid) for pid in line.split()] for line in journal.read_text().splitlines()]


def wait_until(is_so: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


async def until(is_so: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
