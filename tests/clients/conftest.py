"""Environments of clients that are installed apart, from locks with hashes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
LOCKS = FOLDER.parents[1] / "requirements"
INSTALL_SECONDS = 240.0


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages and the programs for Node.js."""
    folder = tmp_path_factory.mktemp("node")
    for path in (*FOLDER.glob("package*.json"), *FOLDER.glob("*.mjs"), *FOLDER.glob("*.ts")):
        shutil.copy(path, folder)
    install(["npm", "ci", "--no-audit", "--no-fund"], folder)
    return folder


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of an environment with the clients in Python."""
    folder = tmp_path_factory.mktemp("python")
    uv, python = str(Path(sys.executable).with_name("uv")), str(folder / "venv" / "bin" / "python")
    install([uv, "venv", "-q", "venv", "--python", sys.executable], folder)
    command = [uv, "pip", "install", "-q", "--system-certs", "--python", python, "--require-hashes"]
    install([*command, "-r", str(LOCKS / "clients.txt")], folder)
    install([*command, "--no-deps", "-r", str(LOCKS / "protollm.txt")], folder)
    return python


def install(command: Sequence[str], folder: Path) -> None:
    """Run a command that installs packages in `folder`; fail with its output."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
