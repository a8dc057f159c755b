"""The last release, which `last_release.toml` names: its wheel and locked packages, in an environment of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NAMED_IN = Path(__file__).with_name("last_release.toml")
START_ANYWAY = Path(__file__).with_name("start_anyway.py")
FOLDER = REPOSITORY / ".venv" / "last-release"
UV = REPOSITORY / ".venv" / "bin" / "uv"


class NotBuiltError(Exception):
    """The last release cannot be built here; the message says what helps."""


@dataclass(frozen=True)
class Release:
    """A release that is installed in `folder`."""

    commit: str
    schema: str
    """The newest revision of the database's schema that its code knows."""
    starts_with_newer_schema: bool
    """True if its code starts with a newer schema that it works with."""
    folder: Path

    @property
    def python(self) -> Path:
        """Return the interpreter of its environment."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def tests(self) -> Path:
        """Return the folder of its own tests, among which is the launcher of its rounds of faults."""
        return self.folder / "source" / "tests"

    @property
    def signoff(self) -> tuple[str, ...]:
        """Return the command that runs its command line."""
        return str(self.python), "-m", "signoff"

    @property
    def launcher(self) -> tuple[str, ...]:
        """Return the command that runs its command line with injected faults, also with a newer schema."""
        if self.starts_with_newer_schema:
            return str(self.python), "-m", "faults.launcher"
        return str(self.python), str(START_ANYWAY), "faults.launcher"


def last_release() -> Release:
    """Return the last release, and install it if that was not done before. Raises NotBuiltError."""
    named = tomllib.loads(NAMED_IN.read_text())
    commit = str(named["commit"])
    release = Release(commit, named["schema"], named["starts_with_newer_schema"], FOLDER / commit[:12])
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (release.folder / "installed").exists():
            _check_out(release)
            _install(release)
            (release.folder / "installed").touch()
    return release


def _check_out(release: Release) -> None:
    """Write the files of the commit to `source`."""
    check = _run("git", "cat-file", "-e", f"{release.commit}^{{commit}}", fails=True)
    if check.returncode:
        raise NotBuiltError(
            f"The commit {release.commit} of the last release is not in this clone; "
            f"{NAMED_IN.relative_to(REPOSITORY)} names it. Fetch it: git fetch --depth 1 origin {release.commit} "
            "(or all commits: git fetch --unshallow)."
        )
    shutil.rmtree(release.folder, ignore_errors=True)
    source, archive = release.folder / "source", release.folder / "source.tar"
    source.mkdir(parents=True)
    _run("git", "archive", "--output", str(archive), release.commit)
    shutil.unpack_archive(archive, source, filter="data")
    archive.unlink()


def _install(release: Release) -> None:
    """Make the environment: the packages that the commit has locked, and the wheel of the commit."""
    source, python = release.folder / "source", str(release.python)
    _run(str(UV), "venv", "-q", "--python", sys.executable, str(release.folder / "venv"))
    packages = ("-q", "--system-certs", "--compile-bytecode", "--require-hashes", "-r", "requirements/run.txt")
    _run(str(UV), "pip", "install", "--python", python, *packages, folder=source)
    _run(str(UV), "pip", "install", "--python", python, "-q", "--no-deps", "--no-build-isolation", ".", folder=source)


def _run(*command: str, folder: Path = REPOSITORY, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result. Raises NotBuiltError if it fails, unless `fails` says that it may."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=_environment())
    if result.returncode and not fails:
        raise NotBuiltError(f"{' '.join(command)} failed; the last release cannot be installed:\n{result.stderr}")
    return result


def _environment() -> Mapping[str, str]:
    """Return the environment without what leads Python to the packages of this version."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
