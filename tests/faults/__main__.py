"""Command `python -m faults ROUND`: run a round of faults, print its result as one line, and fail if a job was lost."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

from faults.report import Figures, figures_of, line_of, write
from faults.round import Round, play
from faults.rounds import MUTANTS, ROUNDS
from support.service_supervisor import log_to, tail

OUT = os.fdopen(os.dup(sys.stdout.fileno()), "w")
"""The original standard output; the output of servers goes to a file."""


def main() -> None:
    """Run the round that the command line names. Exit with 1 if a rule was broken, or 2 if a round could not end."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("round", choices=[*ROUNDS, "tiny"])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--mutation", choices=list(MUTANTS), default=None, help="take a protection out first")
    parser.add_argument("--out", type=Path, default=None, help="where to write the figures")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder for everything that is written")
    arguments = parser.parse_args()
    enter_own_mounts()
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="signoff-faults-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL may have to run as another user
    log_to(folder / "log")
    try:
        code = run(rounds_of(arguments.round, arguments.mutation), arguments.round, folder, seed, arguments.out)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


def enter_own_mounts() -> None:
    """Restart this program in its own mount namespace, where root can mount a small disk that ends with the process."""
    unshare = shutil.which("unshare")
    if os.geteuid() == 0 and unshare and "FAULTS_OWN_MOUNTS" not in os.environ:
        os.environ["FAULTS_OWN_MOUNTS"] = "1"
        os.execv(unshare, [unshare, "--mount", sys.executable, "-m", "faults", *sys.argv[1:]])


def rounds_of(name: str, mutation: str | None) -> list[Round]:
    """Return the rounds of that name; `tiny` is the round of the mutation."""
    if name == "tiny":
        return [replace(MUTANTS[mutation or "no-lease-guard"], mutation=mutation or "none")]
    return [replace(plan, mutation=mutation or "none") for plan in ROUNDS[name]]


def run(plans: list[Round], name: str, folder: Path, seed: int, out: Path | None) -> int:
    """Run the rounds one after another, and return the exit code."""
    print_line(f"seed {seed}")
    all_figures = list[Figures]()
    for plan in plans:
        round_folder = folder / plan.name
        round_folder.mkdir()
        try:
            check = asyncio.run(play(plan, round_folder, seed))
        except Exception as error:  # noqa: BLE001 -- whatever it was, the round has failed
            traceback.print_exc()
            print_line(f"{plan.name}: could not be played to its end: {error!r}\n{tail(folder / 'log')}")
            return 2
        figures = figures_of(plan, round_folder / "history.jsonl", check, seed)
        all_figures.append(figures)
        for finding in figures.findings:
            print_line(f"{plan.name}: {finding.law}: {finding.job}: {finding.text}")
        if not figures.has_disk and plan.name == "file":
            print_line("NO FULL DISK: only root, with unshare and mount, can have a small disk here.")
        print_line(f"{plan.name}: {line_of([figures])}")
    if out is not None:
        write(out, name, all_figures)
    print_line(line_of(all_figures))
    return 1 if any(figures.findings for figures in all_figures) else 0


def print_line(text: str) -> None:
    """Print a line."""
    OUT.write(text + "\n")
    OUT.flush()


if __name__ == "__main__":
    main()
