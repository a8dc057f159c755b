"""Signoff's queued jobs beside other job queues, in one alternating run.

Run as `PYTHONPATH=tests .venv/bin/python bench/queues.py ROOT [--systems NAMES] [--rounds N] [--jobs N] [--out FILE]`.
ROOT is a checkout of which `make setup` has run; `make bench-peers` installs the other queues and the services. Every
process, the services too, may use all cores. In each round, each queue starts empty and takes its turn:

- idle: one job after another, from the request until its answer;
- steady: jobs that are enqueued by 32 producers while the worker runs, until all are done;
- accepted: jobs that are enqueued without a worker;
- backlog: those jobs, from the first that a new worker has done to the last.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from gateways import BUSY, names
from peer_queues import LIMIT_SECONDS, PEERS, Queue, System, signoff_systems
from process_tree import cpu_seconds
from queue_services import Services, services
from queue_tables import tables
from result import ROOT, conditions, show, write

POLL_SECONDS = 0.05


def main() -> None:
    """Measure, print the table, and write it."""
    options = arguments()
    root = options.root.resolve()
    report = conditions(root)
    if report["load"] > BUSY:
        print(f"The machine is busy (load {report['load']}): only ratios count, and they vary.", flush=True)
    known = [*PEERS, *signoff_systems(root)]
    chosen, missing = choose(known, options.systems)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signoff-bench-")))
        folder.chmod(0o755)
        running = stack.enter_context(services(folder))
        report["services"] = running.versions
        figures = [*measure(chosen, running, folder, options)]
    report |= {"versions": {each.name: each.version() for each in chosen}, "missing": missing}
    report |= {"rounds": options.rounds, "jobs": options.jobs}
    report["tables"] = tables(report, figures, {each.name: (each.title, each.keeps) for each in known})
    for table in report["tables"]:
        show(table)
    write(options.out, {**report, "figures": figures})


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="checkout of Signoff")
    parser.add_argument("--systems", type=names, help="names with commas between them; default: all that there are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2000, help="number of jobs in each part of a turn")
    parser.add_argument("--latencies", type=int, default=40, help="number of jobs that are asked one after another")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench/queues.json", help="file for the result as JSON")
    return parser.parse_args()


def choose(known: Sequence[System], wanted: Sequence[str] | None) -> tuple[list[System], list[str]]:
    """Return the wanted queues that are installed, and the names of those that are not; None wants all.

    Raises:
        SystemExit: if a queue that was named is unknown or not installed.
    """
    unknown = {*(wanted or ())} - {each.name for each in known}
    if unknown:
        raise SystemExit(
            f"--systems must be among {', '.join(each.name for each in known)} (got {', '.join(sorted(unknown))})."
        )
    named = [each for each in known if wanted is None or each.name in wanted]
    missing = [each.name for each in named if each.version() is None]
    if missing and wanted is not None:
        raise SystemExit(f"--systems: {', '.join(missing)} is not installed: run `make bench-peers`.")
    if missing:
        print(f"Left out, because not installed (`make bench-peers` does): {', '.join(missing)}", flush=True)
    return [each for each in named if each.name not in missing], missing


def measure(
    systems: Sequence[System], running: Services, folder: Path, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Yield the figures of each queue in each round."""
    for number in range(1, options.rounds + 1):
        for place, system in enumerate(systems):
            turn = (number - 1) * len(systems) + place
            own = folder / f"{system.name}-{number}"
            own.mkdir()
            with ExitStack() as stack:
                queue = system.start(running, own, stack, turn)
                figures = take_turn(queue, running, options)
            shown = ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
            print(f"round {number}, {system.name}: {shown}", flush=True)
            yield {"round": number, "system": system.name, **{name: round(value, 2) for name, value in figures.items()}}


def take_turn(queue: Queue, running: Services, options: argparse.Namespace) -> dict[str, float]:
    """Measure a queue that is empty."""
    figures = dict[str, float]()
    with closing(queue.worker()) as worker:
        queue.enqueue(1)
        wait_for(queue, 1)
        latencies = sorted(queue.latencies_ms(options.latencies))
        figures["idle_p50_ms"] = statistics.median(latencies)
        figures["idle_p99_ms"] = latencies[int((len(latencies) - 1) * 0.99)]
        pids = (*running.pids, *queue.pids, worker.pid)
        before, cpu = queue.done(), cpu_seconds(*pids)
        accepted = queue.enqueue(options.jobs)
        wait_for(queue, before + options.jobs)
        figures["steady"] = options.jobs / (time.monotonic() - accepted.began)
        figures["cpu_us"] = (cpu_seconds(*pids) - cpu + accepted.cpu_seconds) / options.jobs * 1e6
    before = queue.done()
    figures["accepted"] = queue.enqueue(options.jobs).rate
    with closing(queue.worker()):
        first = wait_for(queue, before + 1, poll_seconds=POLL_SECONDS / 5)
        began = time.monotonic()
        wait_for(queue, before + options.jobs)
        figures["backlog"] = (before + options.jobs - first) / (time.monotonic() - began)
    return figures


def wait_for(queue: Queue, count: int, *, poll_seconds: float = POLL_SECONDS) -> int:
    """Wait until `count` jobs are done, and return how many are.

    Raises:
        SystemExit: if they are not done within LIMIT_SECONDS.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while (done := queue.done()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"Only {done} of {count} jobs are done after {LIMIT_SECONDS} s.")
        time.sleep(poll_seconds)
    return done


if __name__ == "__main__":
    main()
