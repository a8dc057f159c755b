"""The repetition of tests that failed, and what a run shows of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
pytest_plugins = ["plugins.repeats"]

def pytest_configure(config):
    for name in ("processes", "law"):
        config.addinivalue_line("markers", name)
"""
TESTS = """
from pathlib import Path
import pytest

def fail_first(name):
    marker = Path(__file__).with_name(name)
    assert marker.exists() or marker.touch(), f"the first failure of {name}"

@pytest.mark.processes
def test_beside_a_process_by_chance():
    fail_first("process")

@pytest.mark.processes
def test_beside_a_process_always():
    assert not "always"

@pytest.mark.processes
@pytest.mark.law
def test_of_a_promise():
    fail_first("law")

def test_alone():
    fail_first("alone")
"""


@pytest.mark.parametrize(
    ("options", "outcome"), [([], "3 failed, 1 passed, 2 rerun in"), (["--once"], "4 failed in")], ids=["twice", "once"]
)
def test_only_a_failure_beside_other_processes_is_repeated_and_it_is_shown(
    options: list[str], outcome: str, tmp_path: Path
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [*command, *options, str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome in run.stdout, run.stdout + run.stderr
    _, is_shown, shown = run.stdout.partition("first failures of tests that passed when they were repeated")
    assert bool(is_shown) == (not options)
    assert options or ("the first failure of process" in shown and "always" not in shown.partition("summary info")[0])
