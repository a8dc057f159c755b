"""Time of a backup and of a restore.

Run as `.venv/bin/python bench/restore.py ROOT [--rows N] [--out FILE]`. ROOT is a checkout of which `make setup` has
run. It makes a history of N rows as `bench/history.py` does, on SQLite, backs it up, and restores the backup into an
empty database.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from calls import Server, run_round, upstream
from history import ask, fill, opened
from jobs import payload_of
from result import Result

BOUND_SECONDS = 5


def run(root: Path, folder: Path, *words: str) -> tuple[float, float]:
    """Run a command; return its CPU time and the elapsed time in seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [root / ".venv/bin/signoff", *words], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used, time.perf_counter() - began


def main() -> None:
    """Measure, and print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    root = options.root.resolve()
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name, upstream() as port:
        full, empty = Path(name) / "full", Path(name) / "empty"
        full.mkdir()
        empty.mkdir()
        server = Server(root, os.sched_getaffinity(0), port, folder=full)
        ask(server.port, server.token, "/api/jobs", payload_of("history"))
        asyncio.run(run_round(server, equal=False, seconds=0.2, connections=1))
        server.close()
        with opened(full, None) as (database, execute):
            fill(database, execute, options.rows)
        result = Result(f"{options.rows:,} rows", "CPU time", "elapsed", "bound on the CPU time", "holds")
        for command, folder in (("backup", full), ("restore", empty)):
            used, elapsed = run(root, folder, command, str(Path(name) / "history.signoff"))
            holds = "yes" if used <= BOUND_SECONDS else "NO"
            is_bound = command == "restore"
            bound = (f"≤ {BOUND_SECONDS} s", holds) if is_bound else ("", "")
            result.add(f"`signoff {command}`", f"{used:.1f} s", f"{elapsed:.1f} s", *bound)
        result.save(options.out, root)


if __name__ == "__main__":
    main()
