"""Time of lists, reports and calls beside a long history.

Run as `.venv/bin/python bench/history.py ROOT [--rows N] [--database URL --empty URL] [--sums GROUPS]`. ROOT is a
checkout of which `make setup` has run. Without the URLs, embedded databases are measured. It copies one logged call and
one ended job until there are N rows, spread over thirty days, a twentieth of them jobs. Then it measures each list, the
usage of a month and waiting calls, in turns with a server of the same kind that has almost no history. It says of each
figure whether it is within its bound.

With `--sums`, it copies no rows: it fills the sums of a month as if of N rows, with GROUPS sums in each hour, and
measures the pages with charts, which read nothing else.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg

from calls import Server, run_round, upstream
from jobs import payload_of
from result import Result

REPEATS = 40
ROUNDS = 5
ROUND_SECONDS = 3.0
CONNECTIONS = 64
MONTH_MS = 30 * 24 * 3600 * 1000
HOUR_US = 3600 * 1_000_000
JOBS_SHARE = 20
STATUSES = ("bot", "human", "success", "fail")
# The lists, with the longest time that is allowed, in milliseconds. An admin asks, and a user where it says so.
LISTS = {
    "/jobs": 20,
    "/jobs?offset=10000": 50,  # the largest offset
    **{f"/jobs?status={status}": 20 for status in STATUSES},
    "/api/jobs": 20,
    "/api/jobs?total=1": 20,
    **{f"/api/jobs?status={status}": 20 for status in STATUSES},
    "/api/jobs?status=success&total=1": 20,
    "/api/jobs?status=fail&total=1": 20,
    "/api/jobs (user)": 20,
    "/api/jobs?status=fail&total=1 (user)": 20,
    "/api/usage?since={since}&by=day": 50,
    "/api/usage?since={since}&by=user,model": 50,
    "/api/usage/latencies?since={since}&by=model": 50,
    "/dashboard/jobs": 200,
    **{f"/dashboard/jobs?status={status}": 200 for status in STATUSES},
    "/dashboard/jobs (user)": 200,
    "/dashboard/jobs?q=nowhere": 200,
    "/dashboard/jobs?target=nowhere": 200,
    "/dashboard/usage?days=31&by=model": 200,
    "/dashboard/usage?days=31&by=user": 200,
}
CHARTS = {
    f"/dashboard/usage?days={days}&by={by}": 200 for days in (1, 7, 31) for by in ("model", "user", "prompt_version")
}
# The speed of calls beside the history, as a share of that beside none, must be at least this.
LOWEST_SHARE = 0.95
FULL, EMPTY = "full", "empty"
# Enough for each list to fill its page.
ROWS_WITHOUT_HISTORY = 2000
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


def fill_sums(database: str, execute: Execute, rows: int, per_period: int = 100) -> None:
    """Insert sums for each hour and day, as the server keeps them: of fifty users, two statuses, and some models.

    The histograms of latencies get as many rows, of two powers of two.
    """
    periods = (("hour", HOUR_US), ("day", 24 * HOUR_US))
    tables = [
        (f"{name}_{period}s", period, period_us) for name in ("usage", "latency") for period, period_us in periods
    ]
    for table, period, period_us in tables:
        names = columns_of(database, execute, table)
        if not names:  # an older checkout
            continue
        first = (int(time.time() * 1000) - MONTH_MS) * 1000 // period_us
        groups = MONTH_MS * 1000 // period_us * per_period
        values = {
            "key": "'bench:' || n",
            period: f"({first} + n / {per_period}) * {period_us}",
            "user_id": "1 + n % 50",
            "model": f"'model-' || CAST(n % {per_period} / 100 AS TEXT)",
            "prompt": "'prompt-' || CAST(n % 7 AS TEXT)",
            "prompt_version": "1 + n % 3",
            "status": "CASE WHEN n % 100 < 50 THEN 'fail' ELSE 'success' END",
            "exponent": "16 + n % 100 / 50",
            "jobs": str(rows // groups + 1),
        }
        columns, selected = ", ".join(names), ", ".join(values.get(name, f"one.{name}") for name in names)
        newest = f"(SELECT * FROM {table} LIMIT 1) AS one"
        numbers = NUMBERS[database].format(count=groups)
        execute(f"INSERT INTO {table} ({columns}) SELECT {selected} FROM {numbers} CROSS JOIN {newest}")


def measure_lists(
    lists: Mapping[str, int], servers: Mapping[str, Server], user_tokens: Mapping[str, str], result: Result
) -> None:
    """Add the shortest time of each list, and that of a server without a history, in alternating requests.

    Other programs on the machine make the other times longer.
    """
    since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 30 * 24 * 3600))
    for name, limit_ms in lists.items():
        path, times = name.removesuffix(" (user)").format(since=since), dict.fromkeys(servers, 1e9)
        for _ in range(REPEATS):
            for which, server in servers.items():
                token = user_tokens[which] if name.endswith(" (user)") else server.token
                began = time.perf_counter()
                ask(server.port, token, path)
                times[which] = min(times[which], (time.perf_counter() - began) * 1000)
        figure = f"{times[FULL]:.1f} ms ({times[EMPTY]:.1f} without a history)"
        holds = "yes" if times[FULL] <= limit_ms else "NO"
        result.add(f"`{name.format(since='MONTH_AGO')}`", figure, f"≤ {limit_ms} ms", holds)


def measure_calls(servers: Mapping[str, Server], result: Result) -> None:
    """Add the share of the speed of calls beside the history, by their CPU time."""
    for server in servers.values():
        server.pause()
    for kind in ("miss", "hit"):
        cpus = {which: list[float]() for which in servers}
        for number in range(ROUNDS + 1):
            for which, server in servers.items():
                _, cpu, _ = asyncio.run(
                    run_round(server, equal=kind == "hit", seconds=ROUND_SECONDS, connections=CONNECTIONS)
                )
                if number:  # the first round warms up
                    cpus[which].append(cpu)
        beside, without = statistics.median(cpus[FULL]), statistics.median(cpus[EMPTY])
        name = f"speed of a {kind} beside the history"
        figure = f"{without / beside:.2f} ({beside:.0f} µs of CPU; {without:.0f} without a history)"
        result.add(name, figure, f"≥ {LOWEST_SHARE}", "yes" if without / beside >= LOWEST_SHARE else "NO")


def make_user(root: Path, folder: Path, settings: Mapping[str, str]) -> str:
    """Return a token of a second user, who has a fiftieth of the history."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")} | settings
    for command in (["user", "create", "user@example.com"], ["token", "create", "user@example.com"]):
        completed = subprocess.run(
            [root / ".venv/bin/signoff", *command], cwd=folder, env=environment, capture_output=True, check=True
        )
    return completed.stdout.split()[0].decode()


def main() -> None:
    """Measure, and print a line for each list, and for each kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", help="URL of an empty PostgreSQL database for the history")
    parser.add_argument("--empty", help="URL of another one, for the server without a history")
    parser.add_argument("--sums", type=int, metavar="GROUPS", help="number of sums in each hour; copy no rows")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    root = options.root.resolve()
    with upstream() as port, contextlib.ExitStack() as stack:
        servers, user_tokens = dict[str, Server](), dict[str, str]()
        for which, url in ((FULL, options.database), (EMPTY, options.empty)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signoff-bench-")))
            settings = {} if url is None else {"SIGNOFF_DATABASE_URL": url}
            start = functools.partial(Server, root, {cores[0]}, port, folder=folder, settings=settings)
            if url is not None:
                subprocess.run([root / ".venv/bin/signoff", "migrate"], env=os.environ | settings, check=True)
            server = start()
            user_tokens[which] = make_user(root, folder, settings)
            ask(server.port, server.token, "/api/jobs", payload_of("history"))
            asyncio.run(run_round(server, equal=False, seconds=0.2, connections=1))
            server.close()
            with opened(folder, url) as (database, execute):
                if options.sums is None:
                    fill(database, execute, options.rows if which == FULL else ROWS_WITHOUT_HISTORY)
                else:
                    fill_sums(database, execute, options.rows, options.sums if which == FULL else 1)
            servers[which] = start(token=server.token)
            stack.callback(servers[which].close)
        history = f"{options.rows:,} rows" if options.sums is None else f"{options.sums:,} sums an hour"
        result = Result(f"{history} in {database}", "measured", "bound", "holds")
        measure_lists(LISTS if options.sums is None else CHARTS, servers, user_tokens, result)
        if options.sums is None:
            measure_calls(servers, result)
        result.save(options.out)


if __name__ == "__main__":
    main()
