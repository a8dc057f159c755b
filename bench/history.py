"""Time of lists and reports beside a long history, with the embedded database.

Run as `python bench/history.py ROOT [--rows N]`. ROOT is a checkout of which `make setup` has run. It copies one ended
job N times into the database, spread over thirty days, and then measures each list and the usage of a month.
"""

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from jobs import address_of, payload_of, running

REPEATS = 15
MONTH_MS = 30 * 24 * 3600 * 1000
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


def ask(port: int, token: str, path: str, payload: object = None) -> bytes:
    """Return the body of the answer."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read()


def fill(path: Path, count: int) -> None:
    """Copy the only job `count` times. One in a hundred failed; ids and times are those of the last thirty days."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        names = [row[1] for row in conn.execute("PRAGMA table_info(jobs)")]
        begin = int(time.time() * 1000) - MONTH_MS
        at = f"({begin} + n * {MONTH_MS / count})"
        ms = f"CAST({at} AS INTEGER)"
        values = {
            "id": f"printf('%08x-%04x-7000-8000-%012x', {ms} >> 16, {ms} & 65535, n)",
            "status": "CASE WHEN n % 100 = 0 THEN 'fail' ELSE 'success' END",
            "user_id": "1 + n % 50",
            "created_at": f"{ms} * 1000",
            "updated_at": f"{ms} * 1000",
        }
        columns = ", ".join(f'"{name}"' for name in names)
        selected = ", ".join(values.get(name, f'"{name}"') for name in names)
        conn.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
            f"INSERT INTO jobs ({columns}) SELECT {selected} FROM numbers CROSS JOIN (SELECT * FROM jobs LIMIT 1)"
        )
        fill_sums(conn)
        conn.commit()


def fill_sums(conn: sqlite3.Connection) -> None:
    """Sum the usage of the rows by hour, as the server does when a job ends; a checkout without sums has no table."""
    names = [row[1] for row in conn.execute("PRAGMA table_info(usage_hours)")]
    if not names:
        return
    hour_us = 3600 * 1_000_000
    values = {
        "key": "'bench:' || min(id)",
        "hour": f"created_at / {hour_us} * {hour_us}",
        "jobs": "count(*)",
        "unpriced": "0",
        "timed": "count(generation_us)",
    }
    dimensions = names[names.index("hour") + 1 : names.index("jobs")]
    sums = {name: f"coalesce(sum({name}), 0)" for name in names[names.index("timed") + 1 :]}
    selected = ", ".join((values | sums).get(name, name) for name in names)
    group = ", ".join(dimensions)
    conn.execute("DELETE FROM usage_hours")
    conn.execute(
        f"INSERT INTO usage_hours ({', '.join(names)}) SELECT {selected} FROM jobs "
        f"WHERE status IN ('fail', 'success') GROUP BY created_at / {hour_us}, {group}"
    )


def main() -> None:
    """Measure, and print a line for each list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    root = options.root.resolve()
    with tempfile.TemporaryDirectory(prefix="signoff-bench-") as name:
        folder = Path(name)
        with running(root, folder, "serve", "--port", "0") as server:
            port, token = address_of(server)
            time.sleep(3)
            ask(port, token, "/api/jobs", payload_of("history"))
            time.sleep(1)
        fill(folder / "data" / "signoff.db", options.rows)
        with running(root, folder, "serve", "--port", "0") as server:
            port = address_of_running(server)
            time.sleep(3)
            since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 30 * 24 * 3600))
            usage = [f"/api/usage?since={since}&by=day", f"/api/usage?since={since}&by=user,model"]
            for path in [*LISTS, *usage]:
                seconds = list[float]()
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    ask(port, token, path)
                    seconds.append(time.perf_counter() - began)
                print(f"{path:60}{statistics.median(seconds) * 1000:10.1f} ms")


def address_of_running(server: object) -> int:
    """Return the port that a server prints at a later start."""
    line = b""
    while b"http://127.0.0.1:" not in line:
        line = server.stdout.readline()
    return int(line.rsplit(b":", 1)[1])


if __name__ == "__main__":
    main()
