"""The commands of `make` for the containers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.paths import DEPLOY, ROOT

COMMANDS = {"up", "down", "build", "restart", "logs", "migrate", "create-admin", "backup", "restore", "shell"}
OTHERS = {"run", "test", "bench", "bench-peers", "bench-check", "faults", "screenshots", "dist", "help"}


def run_make(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `make` with these programs alone on PATH."""
    make = shutil.which("make")
    assert make is not None
    return subprocess.run(
        [make, *words], cwd=ROOT, env={"PATH": str(path)}, check=False, capture_output=True, text=True
    )


def test_help_lists_every_command() -> None:
    text = (ROOT / "Makefile").read_text() + (DEPLOY / "compose.mk").read_text()
    listed = re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)
    assert set(listed) >= COMMANDS | OTHERS


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (None, "Docker is missing: see docs/how-to/deploy.md"),
        ('test "$1" != compose', "Docker's plug-in compose is missing"),
        ('test "$1" != info', "Docker does not run, or you may not use it"),
    ],
)
def test_a_command_says_what_is_missing(program: str | None, message: str, tmp_path: Path) -> None:
    if program is not None:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "docker").chmod(0o755)
    result = run_make("down", path=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr


def test_a_command_that_needs_a_name_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    assert "make create-admin email=" in run_make("create-admin", path=tmp_path).stderr


@pytest.mark.parametrize("fails", [False, True])
def test_a_backup_leaves_nothing_in_the_shared_volume(tmp_path: Path, *, fails: bool) -> None:
    volume, backups = tmp_path / "volume", tmp_path / "backups"
    volume.mkdir()
    # a shell on this machine instead of one in a container
    in_container = f'for last; do :; done; exec sh -c "$(echo "$last" | sed "s|/srv/signoff|{volume}|")"'
    programs = {
        "docker": f'case "$*" in *entrypoint*) {in_container};; esac',
        "signoff": 'echo "rows" >"$2"',
        **({"cat": "exit 3"} if fails else {}),
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    result = run_make("backup", f"BACKUPS={backups}", path=Path(f"{tmp_path}:/usr/bin:/bin"))
    assert (result.returncode != 0) == fails, result.stderr
    assert list(volume.iterdir()) == []
    assert [path.suffix for path in backups.iterdir()] == ([] if fails else [".signoff"])
    assert [path.read_text() for path in backups.iterdir()] == ([] if fails else ["rows\n"])
