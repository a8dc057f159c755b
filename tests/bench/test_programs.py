"""The programs that measure, at work on Signoff, and the locks of what they measure beside it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gateways
from peer_gateways import GATEWAYS
from process_tree import ProcessTree

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "bench/peers"
REQUESTS = 60
PARENT = """
import resource, signal, subprocess, sys
subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
times = resource.getrusage(resource.RUSAGE_CHILDREN)
sum(range(3_000_000))
print("used", times.ru_utime + times.ru_stime, flush=True)
signal.pause()
"""
STOPPED = """
import sys
from pathlib import Path
from process_tree import ProcessTree
tree = ProcessTree(["sh", "-c", "echo ready; exec sleep 100"], core=None, folder=Path(sys.argv[1]))
tree.wait_for(b"ready")
tree.pause()
print(tree.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_signoff_is_measured_under_each_kind_of_load(tmp_path: Path) -> None:
    if shutil.which("cc") is None and "CI" not in os.environ:
        pytest.skip("A C compiler is missing (on Debian: apt install gcc libc6-dev).")
    out = tmp_path / "gateways.json"
    options = ["--gateways", "direct,signoff", "--scenarios", "miss,hit,stream,rate", "--requests", str(REQUESTS)]
    options += ["--rounds", "1", "--seconds", "60", "--warmup", "0", "--out", str(out)]
    program = ROOT / "bench/gateways.py"
    subprocess.run([sys.executable, program, ROOT, *options], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    report = json.loads(out.read_text())
    turns = {(each["scenario"], each["gateway"]) for each in report["figures"]}
    both = {(scenario, gateway) for scenario in ("miss", "stream", "rate") for gateway in ("direct", "signoff")}
    assert turns == both | {("hit", "signoff")}
    assert {(each["answers"], each["failures"]) for each in report["figures"]} == {(REQUESTS, 0)}
    assert all(each["cpu_us"] > 0 for each in report["figures"] if each["gateway"] == "signoff")
    assert report["memory_mb"].keys() == {"signoff"}
    assert len(report["tables"]) == 4
    assert {"date", "load", "processor", "checkout", "versions"} < report.keys()


@pytest.mark.long
def test_batches_of_several_owners_are_measured_and_each_line_has_one_result(tmp_path: Path) -> None:
    out = tmp_path / "batches.json"
    options = ["--lines", "400", "--batches", "4", "--owners", "2", "--workers", "2", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"}
    command = [sys.executable, ROOT / "bench/batches.py", ROOT, *options]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    figures = {row[0]: row[1] for row in json.loads(out.read_text())["rows"]}
    assert figures["results"] == "400, one for each line"
    assert figures.keys() >= {"lines", "100 lines of a new owner", "waiting call, p99"}


def test_a_gateway_that_is_unknown_is_named() -> None:
    with pytest.raises(SystemExit, match="got ngnix"):
        gateways.choose(GATEWAYS, ["ngnix"])


def test_the_names_of_gateways_and_scenarios_differ() -> None:
    assert len({each.name for each in GATEWAYS}) == len(GATEWAYS)
    assert len({each.name for each in gateways.SCENARIOS}) == len(gateways.SCENARIOS)


def test_the_cpu_time_of_a_tree_has_that_of_children_that_have_ended(tmp_path: Path) -> None:
    tree = ProcessTree([sys.executable, "-c", PARENT], core=None, folder=tmp_path)
    try:
        used = float(tree.wait_for(rb"used (\S+)\n")[1])
        assert used > 0
        assert tree.cpu_seconds() > used
        assert tree.memory_mb() > 1
    finally:
        tree.close()


def test_a_process_that_is_stopped_ends_with_the_program_that_stopped_it(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv of util-linux is missing.")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    command = [sys.executable, "-c", STOPPED, tmp_path]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        handle = os.pidfd_open(int(program.stdout.readline()))
        program.kill()
        ended, _, _ = select.select([handle], [], [], 60)
        os.close(handle)
    assert ended


@pytest.mark.parametrize("lock", [path.name for path in PEERS.glob("*.txt")])
def test_a_lock_of_python_has_versions_and_hashes_and_no_addresses(lock: str) -> None:
    text = (PEERS / lock).read_text()
    packages = re.findall(r"^\S+==\S+( ; .+)? \\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(packages) == len(re.findall(r"^\w", text, re.MULTILINE)) > 0
    assert "://" not in text
    wanted = re.findall(r"^([\w-]+)(?:\[.+\])?(==\S+)$", (PEERS / lock).with_suffix(".in").read_text(), re.MULTILINE)
    assert [name for name, version in wanted if f"{name}{version} " not in text] == []
    assert wanted


def test_the_lock_of_npm_has_hashes_and_no_addresses_of_packages() -> None:
    packages = json.loads((PEERS / "portkey/package-lock.json").read_text())["packages"]
    assert packages[""]["dependencies"].keys() == {"@portkey-ai/gateway", "hono", "@hono/node-server"}
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []
