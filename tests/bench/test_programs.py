"""The program that measures gateways, at work on Signoff."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gateways
from peer_gateways import GATEWAYS

ROOT = Path(__file__).parents[2]
REQUESTS = 60


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


def test_a_gateway_that_is_unknown_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown ngnix"):
        gateways.choose(GATEWAYS, ["ngnix"])


def test_the_names_of_gateways_and_scenarios_differ() -> None:
    assert len({each.name for each in GATEWAYS}) == len(GATEWAYS)
    assert len({each.name for each in gateways.SCENARIOS}) == len(gateways.SCENARIOS)
