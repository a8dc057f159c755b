"""Comparison of what calls cost in this checkout and in another commit; it fails if they cost more than a tenth more.

Run as `.venv/bin/python bench/check.py ROOT --base COMMIT [--by instructions|cpu] [--rounds N] [--requests N]`. Both
servers answer the same numbers of requests in turns: with an answer of a model, from the cache, and as a stream. What
counts is the number of instructions, which Valgrind counts and which other programs on the machine hardly change, or
the CPU time. Valgrind makes a request fifty times as long, so a group of the log has fewer rows, and writing it has a
greater share than it has without Valgrind. The other commit is checked out in `.bench/base`.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gateway_tables import spread
from gateways import cores, made, request_of
from load import Load, mock, run_load
from peer_gateways import Running, start_signoff
from result import ROOT, commit, conditions, show, write

BASE = ROOT / ".bench/base"
MAX_RATIO = 1.1
CONNECTIONS = 16
LIMIT_SECONDS = 120
SETTLE_SECONDS = 0.3
"""Seconds in which the log is written behind the last answers."""
LOADS = {
    "miss": Load(connections=CONNECTIONS),
    "hit": Load(connections=CONNECTIONS, equal=True),
    "stream": Load(connections=CONNECTIONS, stream=True),
}
REQUESTS = {"instructions": 200, "cpu": 4000}
SHARES = {"miss": 1.0, "hit": 1.0, "stream": 0.25}
"""Number of requests of each load, as a share of that of the option."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Comparison of the costs of one load."""

    load: str
    base: Sequence[float]
    """Cost of a request in the other commit, in each round."""
    own: Sequence[float]
    """Cost of a request in this checkout, in each round."""

    @property
    def ratio(self) -> float:
        """Return the median of the ratios within a round."""
        return median(own / base for own, base in zip(self.own, self.base, strict=True))

    @property
    def holds(self) -> bool:
        """Return True unless this checkout costs more than MAX_RATIO of the other."""
        return self.ratio <= MAX_RATIO


def main() -> None:
    """Measure, print the table, write it, and fail if a load costs too much."""
    options = arguments()
    root = options.root.resolve()
    report = conditions(root)
    base = checkout(root, options.base)
    by = options.by or ("instructions" if shutil.which("valgrind") else "cpu")
    requests = options.requests or REQUESTS[by]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signoff-bench-")))
        upstream = stack.enter_context(mock(cores().mock, made(folder / "mock")))
        counters = dict[str, Counter]()
        for name, place in {"base": base, "own": root}.items():
            counters[name] = Counter(place, made(folder / name), upstream, by)
            stack.callback(counters[name].close)
        comparisons = verdicts([*measure(counters, options.rounds, requests)])
    table = table_of(comparisons, by, commit(base), commit(root))
    show(table)
    report |= {"by": by, "rounds": options.rounds, "requests": requests, "tables": [table]}
    write(options.out, report)
    if failed := [f"{each.load} × {each.ratio:.2f}" for each in comparisons if not each.holds]:
        raise SystemExit(f"More than {MAX_RATIO} × the cost of {options.base}: {', '.join(failed)}.")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="checkout of Signoff")
    parser.add_argument("--base", required=True, help="commit to compare with")
    parser.add_argument("--by", choices=("instructions", "cpu"), help="default: instructions, if there is Valgrind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, help="number of requests in a turn; default: as many as are steady")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench/check.json", help="file for the result as JSON")
    return parser.parse_args()


def checkout(root: Path, name: str) -> Path:
    """Check a commit out in `.bench/base`, install it there, and return the folder."""
    command = ["git", "-C", root, "rev-parse", "--verify", "-q", f"{name}^{{commit}}"]
    resolved = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not resolved:
        raise SystemExit(f"--base: there is no commit {name!r}.")
    if (BASE / ".git").exists():
        command = ["git", "-C", BASE, "checkout", "-q", "--force", "--detach", resolved]
    else:
        command = ["git", "-C", root, "worktree", "add", "-f", "-q", "--detach", BASE, resolved]
    subprocess.run(command, check=True)
    print(f"Installing {name} ({resolved[:7]}) in {BASE}", flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["make", "-s", "-C", BASE, ".venv/.run"], env=environment, check=True, stdout=subprocess.DEVNULL)
    return BASE


class Counter:
    """Server of a checkout, and what it has spent."""

    def __init__(self, root: Path, folder: Path, upstream: int, by: str) -> None:
        """Start the server, under Valgrind if instructions are counted, and stop it until its turn."""
        self._dumps, self._by, self._folder, self._counted = folder / "dumps", by, folder, 0
        valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={self._dumps}"]
        self._running = start_signoff(root, folder, cores().gateway, upstream, tool=valgrind if by != "cpu" else ())
        self._running.tree.pause()

    @property
    def running(self) -> Running:
        """Return the server."""
        return self._running

    def cost(self, load: Load, requests: int) -> float:
        """Return what one of so many requests costs: instructions, or microseconds of CPU time."""
        tree = self._running.tree
        tree.resume()
        request = self._folder / "request"
        request.write_bytes(request_of(load, self._running))
        before = self._spent()
        port, core = self._running.port, cores().generator
        figures = run_load(load, request, port, seconds=LIMIT_SECONDS, core=core, requests=requests)
        if figures.failures or figures.answers != requests:
            raise SystemExit(f"{figures.answers} of {requests} requests were answered, {figures.failures} failed.")
        time.sleep(SETTLE_SECONDS)
        spent = self._spent() - before
        tree.pause()
        return spent / requests

    def close(self) -> None:
        """End the server."""
        self._running.tree.close()

    def _spent(self) -> float:
        if self._by == "cpu":
            return self._running.tree.cpu_seconds() * 1e6
        self._control("--instr=on")
        self._control("--dump")
        for dump in self._folder.glob("dumps.*"):
            self._counted += instructions(dump.read_text())
            dump.unlink()
        return self._counted

    def _control(self, option: str) -> None:
        command = ["callgrind_control", option, str(self._running.tree.pid)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT_SECONDS)


def instructions(dump: str) -> int:
    """Return the instructions that a dump of Callgrind counts; each dump counts from the one before.

    The format is that of Valgrind's manual, "Callgrind Format Specification".
    """
    match = re.search(r"^totals: (\d+)", dump, re.MULTILINE)
    return int(match[1]) if match else 0


def measure(counters: Mapping[str, Counter], rounds: int, requests: int) -> Iterator[tuple[str, str, float]]:
    """Yield the load, `base` or `own`, and the cost of each turn, but for those of a first round that warms up."""
    for number in range(rounds + 1):
        for load, description in LOADS.items():
            for name, counter in counters.items():
                cost = counter.cost(description, max(CONNECTIONS, round(requests * SHARES[load])))
                if number:
                    yield load, name, cost
        print(f"round {number} of {rounds}" if number else "warm", flush=True)


def verdicts(costs: Sequence[tuple[str, str, float]]) -> list[Verdict]:
    """Return the comparison of each load, from the load, `base` or `own`, and the cost of each turn."""

    def of(load: str, name: str) -> list[float]:
        return [cost for its, whose, cost in costs if (its, whose) == (load, name)]

    loads = dict.fromkeys(load for load, _, _ in costs)
    return [Verdict(load=load, base=of(load, "base"), own=of(load, "own")) for load in loads]


def table_of(comparisons: Sequence[Verdict], by: str, base: str, own: str) -> dict[str, object]:
    """Return the table of the comparison."""
    unit, factor = ("thousand instructions", 1000) if by == "instructions" else ("CPU µs", 1)
    rows = [
        [
            each.load,
            *(spread([cost / factor for cost in costs]) for costs in (each.base, each.own)),
            f"{each.ratio:.2f}",
            "yes" if each.holds else "NO",
        ]
        for each in comparisons
    ]
    columns = [f"a request, {unit}", f"base {base}", f"this checkout {own}", "ratio", f"≤ {MAX_RATIO}"]
    return {"title": f"Cost of calls, {unit}", "columns": columns, "rows": rows}


if __name__ == "__main__":
    main()
