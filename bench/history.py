"""Time of lists, reports and calls beside a long history.

Run as `.venv/bin/python bench/history.py ROOT [--rows N] [--database URL]`. ROOT is a checkout of which `make setup`
has run; URL is an empty PostgreSQL database, without which the embedded database is measured. It copies one logged call
and one ended job until there are N rows, spread over thirty days, a twentieth of them jobs. Then it measures each list
and the usage of a month, and waiting calls in rounds that alternate with those of a server without a history.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from calls import Server, run_round, upstream
from jobs import payload_of

REPEATS = 15
ROUNDS = 5
ROUND_SECONDS = 3.0
CONNECTIONS = 64
MONTH_MS = 30 * 24 * 3600 * 1000
HOUR_US = 3600 * 1_000_000
JOBS_SHARE = 20
LISTS = [
    "/jobs",
    "/jobs?status=success",
    "/jobs?offset=10000",
    "/jobs?status=fail",
    "/api/jobs",
    "/api/jobs?total=1",
    "/api/jobs?status=success&total=1",
    "/api/jobs?status=fail&total=1",
    "/api/jobs?status=human",
    "/",
]
# Expressions of each database: the hexadecimal text of a number with leading zeros, and the numbers from 1 to N.
HEX = {"sqlite": "printf('%0{digits}x', {number})", "postgresql": "lpad(to_hex({number}), {digits}, '0')"}
NUMBERS = {
    "sqlite": "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
    "SELECT n FROM numbers) AS numbers",
    "postgresql": "generate_series(CAST(1 AS BIGINT), {count}) AS numbers(n)",
}
Execute = Callable[[str], list[Any]]


def ask(port: int, token: str, path: str, payload: object = None) -> bytes:
    """Return the body of the answer."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read()


@contextlib.contextmanager
def opened(folder: Path, url: str | None) -> Iterator[tuple[str, Execute]]:
    """Yield the name of the database, and a function that executes SQL in it."""
    if url is None:
        with contextlib.closing(sqlite3.connect(folder / "data" / "signoff.db", isolation_level=None)) as conn:
            yield "sqlite", lambda sql: conn.execute(sql).fetchall()
        return
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        yield "postgresql", lambda sql: runner.run(connection.fetch(sql, timeout=7200))
        runner.run(connection.close())


def fill(database: str, execute: Execute, rows: int) -> None:
    """Copy the newest call and the newest job. One in a hundred failed; ids and times are those of the last month."""
    for table, count in (("jobs", rows // JOBS_SHARE), ("calls", rows - rows // JOBS_SHARE)):
        names = columns_of(database, execute, table)
        begin = int(time.time() * 1000) - MONTH_MS
        ms = f"CAST({begin} + n * {MONTH_MS / count} AS BIGINT)"
        parts = [(8, f"({ms} / 65536)"), (4, f"({ms} % 65536)"), (12, "n")]
        time_high, time_low, number = [HEX[database].format(digits=digits, number=part) for digits, part in parts]
        values = {
            "id": f"{time_high} || '-' || {time_low} || '-7000-8000-' || {number}",
            "status": "CASE WHEN n % 100 = 0 THEN 'fail' ELSE 'success' END",
            "user_id": "1 + n % 50",
            "created_at": f"{ms} * 1000",
            "updated_at": f"{ms} * 1000",
        }
        columns = ", ".join(f'"{name}"' for name in names)
        selected = ", ".join(values.get(name, f'one."{name}"') for name in names)
        newest = f"(SELECT * FROM {table} ORDER BY id DESC LIMIT 1) AS one"
        numbers = NUMBERS[database].format(count=count)
        execute(f"INSERT INTO {table} ({columns}) SELECT {selected} FROM {numbers} CROSS JOIN {newest}")
    fill_sums(database, execute, rows)
    if database == "postgresql":
        for table in ("jobs", "calls", "usage_hours", "usage_days"):
            execute(f"VACUUM ANALYZE {table}")


def columns_of(database: str, execute: Execute, table: str) -> list[str]:
    """Return the names of the columns of a table."""
    if database == "sqlite":
        return [row[1] for row in execute(f"PRAGMA table_info({table})")]
    query = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
    return [row[0] for row in execute(query)]


def fill_sums(database: str, execute: Execute, rows: int) -> None:
    """Insert a sum for each hour and day, each of the fifty users and each status, as the server keeps them."""
    for table, period, period_us in (("usage_hours", "hour", HOUR_US), ("usage_days", "day", 24 * HOUR_US)):
        names = columns_of(database, execute, table)
        if not names:  # an older checkout
            continue
        first = (int(time.time() * 1000) - MONTH_MS) * 1000 // period_us
        groups = MONTH_MS * 1000 // period_us * 100
        values = {
            "key": "'bench:' || n",
            period: f"({first} + n / 100) * {period_us}",
            "user_id": "1 + n % 50",
            "status": "CASE WHEN n % 100 < 50 THEN 'fail' ELSE 'success' END",
            "jobs": str(rows // groups + 1),
        }
        columns, selected = ", ".join(names), ", ".join(values.get(name, f"one.{name}") for name in names)
        newest = f"(SELECT * FROM {table} LIMIT 1) AS one"
        numbers = NUMBERS[database].format(count=groups)
        execute(f"INSERT INTO {table} ({columns}) SELECT {selected} FROM {numbers} CROSS JOIN {newest}")


def measure_lists(server: Server) -> None:
    """Print the median time of each list."""
    since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 30 * 24 * 3600))
    usage = [f"/api/usage?since={since}&by=day", f"/api/usage?since={since}&by=user,model"]
    for path in [*LISTS, *usage]:
        seconds = list[float]()
        for _ in range(REPEATS):
            began = time.perf_counter()
            ask(server.port, server.token, path)
            seconds.append(time.perf_counter() - began)
        print(f"{path:60}{statistics.median(seconds) * 1000:10.1f} ms", flush=True)


def measure_calls(full: Server, empty: Server) -> None:
    """Print the rate and the CPU time of calls beside the history, and without one."""
    full.pause()
    empty.pause()
    for kind in ("miss", "hit"):
        figures: dict[str, list[tuple[float, float, float]]] = {"with history": [], "without": []}
        for number in range(ROUNDS + 1):
            for name, server in (("with history", full), ("without", empty)):
                figure = asyncio.run(
                    run_round(server, equal=kind == "hit", seconds=ROUND_SECONDS, connections=CONNECTIONS)
                )
                if number:  # the first round warms up
                    figures[name].append(figure)
        for name, rounds in figures.items():
            rates, cpus, _ = zip(*rounds, strict=True)
            line = f"{statistics.median(rates):8.0f} requests/s {statistics.median(cpus):8.0f} µs CPU"
            print(f"{kind:5}{name:15}{line}  ({min(cpus):.0f}–{max(cpus):.0f})", flush=True)


def main() -> None:
    """Measure, and print a line for each list, and for each kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    settings = {} if options.database is None else {"SIGNOFF_DATABASE_URL": options.database}
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name, upstream() as upstream_port:
        folder, root = Path(name), options.root.resolve()
        if options.database is not None:
            subprocess.run([root / ".venv/bin/signoff", "migrate"], cwd=folder, env=os.environ | settings, check=True)
        server = Server(root, {cores[0]}, upstream_port, folder=folder, settings=settings)
        ask(server.port, server.token, "/api/jobs", payload_of("history"))
        asyncio.run(run_round(server, equal=False, seconds=0.2, connections=1))
        server.close()
        with opened(folder, options.database) as (database, execute):
            began = time.perf_counter()
            fill(database, execute, options.rows)
            print(f"{options.rows} rows of {database} after {time.perf_counter() - began:.0f} s", flush=True)
        full = Server(root, {cores[0]}, upstream_port, folder=folder, settings=settings, token=server.token)
        with contextlib.closing(full):
            measure_lists(full)
            with contextlib.closing(Server(root, {cores[0]}, upstream_port)) as empty:
                measure_calls(full, empty)


if __name__ == "__main__":
    main()
