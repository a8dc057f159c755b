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
BROKEN = {
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
@pytest.mark.parametrize("name", ["smoke", pytest.param("short", marks=pytest.mark.long)])
def test_a_round_of_faults_loses_nothing(name: str, folder: Path) -> None:
    out = folder / "figures.json"
    played = play(folder, name, "--out", str(out), seconds=ROUND_SECONDS)
    if "is not installed" in played.stdout:
        if os.environ.get("CI") == "true":
            pytest.fail(played.stdout, pytrace=False)
        pytest.skip(played.stdout)
    assert played.returncode == 0, played.stdout
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    for figures in report.rounds:
        assert figures.laws == {}
        assert [figures.counts[law] for law in COUNTED] == [0] * len(COUNTED)
        assert figures.counts["ok"] == figures.counts["acknowledged"] > (100 if name == "short" else 0)
        assert figures.more["kills"] > 0
        assert sum(row.struck for row in figures.faults) > (3 if name == "short" else 0)
    assert played.stdout.splitlines()[-1].startswith("attempted ")


@pytest.mark.long
@pytest.mark.timeout(TINY_ROUNDS * (TINY_SECONDS + 100))
@pytest.mark.parametrize("mutation", MUTANTS)
def test_a_protection_that_is_missing_is_missed(mutation: str, folder: Path) -> None:
    for _ in range(TINY_ROUNDS):  # on a busy machine a round may end before its first fault has any effect
        played = play(folder, "tiny", "--mutation", mutation, seconds=TINY_SECONDS)
        if played.returncode:
            break
    assert played.returncode == 1, played.stdout
    assert f"tiny: {BROKEN[mutation]}: " in played.stdout


@pytest.mark.long
def test_a_round_that_is_killed_leaves_no_process_behind(folder: Path) -> None:
    words = [sys.executable, "-m", "faults", "tiny", "--keep", str(folder / "kept")]
    told = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(words, cwd=folder, env=told, stdout=subprocess.DEVNULL) as playing:
        history = folder / "kept" / "tiny" / "history.jsonl"
        try:
            until(lambda: (history.exists() and b'"told"' in history.read_bytes()) or None)
            assert len(processes_of(folder)) > 3
        finally:
            playing.kill()
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
    mine, theirs = Orders(tmp_path / "orders"), Orders(tmp_path / "orders")
    mine.give("kill", "after-claim")
    mine.clock_shift = -3600.0
    assert theirs.at("after-claim") == "kill"
    assert theirs.at("after-answer") == ""
    assert theirs.clock_shift == -3600.0
    theirs.clear()
    assert mine.at("after-claim") == ""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that other users may enter, because PostgreSQL may have to run as another user."""
    with tempfile.TemporaryDirectory(prefix="signoff-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def play(folder: Path, *words: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a round in its own process, and wait until nothing of it is left."""
    told = os.environ | {"PYTHONPATH": str(TESTS), "TMPDIR": str(folder)}
    played = subprocess.run(
        [sys.executable, "-m", "faults", *words],
        cwd=folder,
        env=told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    until(lambda: not left_behind(folder) or None, LEAVE_SECONDS)
    return played


def left_behind(folder: Path) -> list[str]:
    """Return the processes that use the folder, and the temporary folders left in it."""
    return [*processes_of(folder), *map(str, folder.glob("signoff-faults-*"))]


def processes_of(folder: Path) -> list[str]:
    """Return the processes with the folder in their command line or as working directory."""
    found = list[str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, place = (process / "cmdline").read_bytes(), str((process / "cwd").readlink())
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(folder).encode() in words or place.startswith(str(folder))):
            found.append(f"{process.name} {words.decode(errors='replace')}")
    return found
