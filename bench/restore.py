"""Time of a backup and of a restore.

Run as `.venv/bin/python bench/restore.py ROOT [--rows N] [--out FILE]`. ROOT is a checkout of which `make setup` has
run. It makes a history of N rows as `bench/history.py` does, on SQLite, backs it up, and restores the backup into an
empty database.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from calls import Server, run_round, upstream
from history import ask, fill, opened
from jobs import payload_of
from result import Result

# A restore reads the archive twice, checks and decodes it, and then does what the driver alone does.
MOST_DRIVERS = 3


def copy_rows(source: str, target: str) -> None:
    """Copy all tables of an SQLite file into a new one with the driver alone, in one transaction."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        schema = old.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
        )
        new.execute("PRAGMA journal_mode = WAL")
        new.execute("BEGIN IMMEDIATE")
        definitions = sorted(schema, key=lambda row: ["table", "index", "trigger", "view"].index(row[0]))
        for kind, _, sql in definitions:
            if kind in {"table", "index"}:
                new.execute(sql)
        for kind, name, _ in definitions:
            if kind == "table":
                rows = old.execute(f'SELECT * FROM "{name}"')
                values = ", ".join("?" * len(rows.description))
                new.executemany(f'INSERT INTO "{name}" VALUES ({values})', rows)
        new.commit()


def run(root: Path, folder: Path, *words: str) -> tuple[float, float]:
    """Run a command, or another program; return its CPU time and the elapsed time in seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([root / ".venv/bin" / words[0], *words[1:]], cwd=folder, env=environment, check=True)
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
        result = Result(f"{options.rows:,} rows", "CPU time", "elapsed", "bound", "holds")
        archive, copy = str(Path(name) / "history.signoff"), str(Path(name) / "copy.db")
        result.add("`signoff backup`", *map("{:.1f} s".format, run(root, full, "signoff", "backup", archive)), "", "")
        driver = run(root, full, "python", __file__, "--copy", "data/signoff.db", copy)
        result.add("the driver alone, row by row", *map("{:.1f} s".format, driver), "", "")
        used, elapsed = run(root, empty, "signoff", "restore", archive)
        holds = "yes" if used <= MOST_DRIVERS * driver[0] else "NO"
        bound = f"≤ {MOST_DRIVERS} × the CPU time of the driver alone"
        result.add("`signoff restore`", f"{used:.1f} s", f"{elapsed:.1f} s", bound, holds)
        result.save(options.out)


if __name__ == "__main__":
    copy_rows(*sys.argv[2:]) if sys.argv[1:2] == ["--copy"] else main()
