"""Tests of rounds of faults: no job is lost, and a missing protection is detected."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from faults.orders import Orders
from faults.report import COUNTED, Report
from faults.rounds import MUTANTS
from faults.servers import redis
from support.processes import until
from support.service_supervisor import MissingError

TESTS = Path(__file__).parents[1]
ROUND_SECONDS = 900
TINY_SECONDS = 260
TINY_ROUNDS = 5
LEAVE_SECONDS = 60
BROKEN_LAWS = {
    "no-lease-guard": "stale",
    "no-round-guard": "verdicts",
    "no-write-lock": "writers",
    "late-delivery": "undelivered",
    "early-acknowledgement": "lost",
    "no-veil": "held-seen",
    "no-keys": "duplicated",
    "own-clock": "clock",
}


@pytest.mark.timeout(ROUND_SECONDS + 100)
@pytest.mark.parametrize(
    "name", ["smoke", *(pytest.param(name, marks=pytest.mark.long) for name in ("short", "upgrade"))]
)
def test_a_round_of_faults_loses_nothing(name: str, folder: Path) -> None:
    out = folder / "figures.json"
    completed = run_round(folder, name, "--out", str(out), seconds=ROUND_SECONDS)
    if "is not installed" in completed.stdout:
        if os.environ.get("CI") == "true":
            pytest.fail(completed.stdout, pytrace=False)
        pytest.skip(completed.stdout)
    assert completed.returncode == 0, completed.stdout
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    for figures in report.rounds:
        assert figures.laws == {}
        assert [figures.counts[law] for law in COUNTED] == [0] * len(COUNTED)
        assert figures.counts["ok"] == figures.counts["acknowledged"] > (0 if name == "smoke" else 100)
        assert figures.more["kills"] > 0
        assert sum(row.struck for row in figures.faults) > 0
    assert completed.stdout.splitlines()[-1].startswith("attempted ")


@pytest.mark.long
@pytest.mark.timeout(TINY_ROUNDS * (TINY_SECONDS + 100))
@pytest.mark.parametrize("mutation", MUTANTS)
def test_a_missing_protection_is_detected(mutation: str, folder: Path) -> None:
    for _ in range(TINY_ROUNDS):  # on a busy machine a round may end before its first fault has any effect
        completed = run_round(folder, "tiny", "--mutation", mutation, seconds=TINY_SECONDS)
        if completed.returncode:
            break
    assert completed.returncode == 1, completed.stdout
    assert f"tiny: {BROKEN_LAWS[mutation]}: " in completed.stdout


def test_the_mutations_change_the_code_as_it_is_now() -> None:
    program = "from faults.mutations import MUTATIONS\nfor mutate in MUTATIONS.values(): mutate()"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(TESTS)}, check=True)


@pytest.mark.long
def test_a_round_that_is_killed_leaves_no_process_behind(folder: Path) -> None:
    command = [sys.executable, "-m", "faults", "tiny", "--keep", str(folder / "kept")]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        history = folder / "kept" / "tiny" / "history.jsonl"
        try:
            until(lambda: (history.exists() and b'"told"' in history.read_bytes()) or None)
            assert len(processes_of(folder)) > 3
        finally:
            process.kill()
    until(lambda: not processes_of(folder) or None, LEAVE_SECONDS)


@pytest.mark.anyio
async def test_a_server_that_was_killed_comes_back_at_its_address(folder: Path) -> None:
    try:
        server = redis(folder / "redis")
    except MissingError as error:
        pytest.skip(str(error))
    await server.start()
    try:
        async with Redis.from_url(server.url) as client:
            await client.set("a", "b")
        await server.end()
        await server.start()
        async with Redis.from_url(server.url) as client:
            assert await client.get("a") is None
    finally:
        await server.end()


def test_orders_are_seen_by_another_process_and_obeyed_once(tmp_path: Path) -> None:
    orders, same_orders = Orders(tmp_path / "orders"), Orders(tmp_path / "orders")
    orders.give("kill", "after-claim")
    orders.clock_shift = -3600.0
    assert same_orders.at("after-claim") == "kill"
    assert same_orders.at("after-answer") == ""
    assert same_orders.clock_shift == -3600.0
    same_orders.clear()
    assert orders.at("after-claim") == ""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that other users may enter, because PostgreSQL may have to run as another user."""
    with tempfile.TemporaryDirectory(prefix="signoff-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run_round(folder: Path, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a round in its own process, and wait until nothing of it is left."""
    environment = os.environ | {"PYTHONPATH": str(TESTS), "TMPDIR": str(folder)}
    completed = subprocess.run(
        [sys.executable, "-m", "faults", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    until(lambda: not left_behind(folder) or None, LEAVE_SECONDS)
    return completed


def left_behind(folder: Path) -> list[str]:
    """Return the processes that use the folder, and the temporary folders left in it."""
    return [*processes_of(folder), *map(str, folder.glob("signoff-faults-*"))]


def processes_of(folder: Path) -> list[str]:
    """Return the processes with the folder in their command line or as working directory."""
    processes = list[str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, cwd = (process / "cmdline").read_bytes(), str((process / "cwd").readlink())
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(folder).encode() in command or cwd.startswith(str(folder))):
            processes.append(f"{process.name} {command.decode(errors='replace')}")
    return processes
