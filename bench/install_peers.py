"""Installation of the programs that Signoff is measured beside, each in an environment of its own in `.bench/`.

Run as `make bench-peers`, or `.venv/bin/python bench/install_peers.py [NAME…]`. Packages of PyPI and npm have the
versions and hashes of the files in `bench/peers/`. Packages of Debian have the version that the system offers, which
each result states. Run as root, the program installs those that are missing; otherwise it prints their names.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from load import native
from peer_gateways import PEERS, nginx
from result import ROOT

LOCKS = ROOT / "bench/peers"
UV = ROOT / ".venv/bin/uv"
PYTHON_ENVIRONMENTS = ("vllm-router", "sglang-router", "tensorzero", "litellm", "queues")
NAMES = (*PYTHON_ENVIRONMENTS, "portkey")
DEBIAN = {
    "nginx": ("nginx-light", lambda: nginx() is not None),
    "cc": ("gcc libc6-dev", lambda: shutil.which("cc") is not None),
    "npm": ("nodejs npm", lambda: shutil.which("npm") is not None),
    "postgres": ("postgresql", lambda: any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))),
    "rabbitmq": ("rabbitmq-server", lambda: shutil.which("rabbitmq-server", path="/usr/sbin:/usr/bin") is not None),
    "redis": ("redis-server", lambda: shutil.which("redis-server") is not None),
}
"""Packages of Debian, and whether their program is there."""


def main() -> None:
    """Install what is named on the command line, or everything."""
    names = sys.argv[1:] or NAMES
    if unknown := {*names} - {*NAMES}:
        raise SystemExit(f"NAME must be one of {', '.join(NAMES)} (got {', '.join(sorted(unknown))}).")
    install_debian()
    for name in names:
        lock = LOCKS / f"{name}.txt" if name in PYTHON_ENVIRONMENTS else LOCKS / name / "package-lock.json"
        stamp = PEERS / name / ".installed"
        if stamp.exists() and stamp.read_text() == lock.read_text():
            print(f"{name} is installed", flush=True)
            continue
        print(f"{name}: installing", flush=True)
        shutil.rmtree(PEERS / name, ignore_errors=True)
        install_python(name, lock) if name in PYTHON_ENVIRONMENTS else install_npm(name)
        stamp.write_text(lock.read_text())
    for name in ("mock", "load"):
        native(name)


def install_debian() -> None:
    """Install the packages of Debian whose program is missing, or say which they are."""
    packages = [word for names, there in DEBIAN.values() if not there() for word in names.split()]
    if not packages:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"Packages are missing; install them as root (on Debian: apt install {' '.join(packages)}).", flush=True)
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=environment)
    run(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages], env=environment)


def install_python(name: str, lock: Path) -> None:
    """Install the packages of a lock with hashes into an environment."""
    run([UV, "venv", "-q", "--python", ROOT / ".venv/bin/python", PEERS / name])
    python = PEERS / name / "bin/python"
    options = ["-q", "--system-certs", "--compile-bytecode", "--require-hashes"]
    run([UV, "pip", "install", *options, "--python", python, "-r", lock])


def install_npm(name: str) -> None:
    """Install the packages of a lock of npm, without scripts of their authors."""
    (PEERS / name).mkdir(parents=True)
    for file in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(LOCKS / name / file, PEERS / name)
    run(["npm", "ci", "--silent"], cwd=PEERS / name)


def run(command: Sequence[str | Path], **options: object) -> None:
    """Run a command, and end with a message if it fails."""
    if subprocess.run(command, check=False, **options).returncode != 0:
        raise SystemExit(f"The installation failed: {' '.join(str(word) for word in command)}")


if __name__ == "__main__":
    main()
