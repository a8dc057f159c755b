"""Signoff beside other gateways, in one alternating run.

Run as `.venv/bin/python bench/gateways.py ROOT [--gateways NAMES] [--scenarios NAMES] [--rounds N] [--seconds S]
[--out FILE]`. ROOT is a checkout of which `make setup` has run; `make bench-peers` installs the other gateways. Each
gateway is one process on one core, before a mock that is compiled, as the generator is; both run on another core.
The gateways take turns in each round, and those that have no turn are stopped. The row without a gateway shows how far
the mock and the generator are from their limit.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway_tables import RATE, tables
from load import Load, mock, run_load, template
from peer_gateways import GATEWAYS, Gateway, Running, signoff_gateways, wait_for_answer
from result import ROOT, conditions, show, write

SETTLE_SECONDS = 0.1
"""Seconds for which a gateway runs after a load, because the log is written behind the last answers."""
WARMUP_ROUND_SECONDS = 0.3
BUSY = 0.5
"""Load of the machine from which figures are doubtful."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Load that is put on each gateway."""

    name: str
    load: Load
    gateways: frozenset[str] = frozenset()
    """Names of those that take part; none: all but the variants of one."""


SCENARIOS = (
    Scenario(name="miss", load=Load()),
    Scenario(name="hit", load=Load(equal=True), gateways=frozenset({"signoff"})),
    Scenario(name="variants", load=Load(), gateways=frozenset({"signoff-log-before-answer", "signoff-limits"})),
    Scenario(name="miss-1", load=Load(connections=1)),
    Scenario(name="miss-256", load=Load(connections=256)),
    Scenario(name="stream", load=Load(stream=True)),
    Scenario(name="stream-paced", load=Load(stream=True, pace_ms=10)),
    Scenario(name="body-50k", load=Load(prompt_bytes=50_000)),
    Scenario(name="body-300k", load=Load(prompt_bytes=300_000)),
    Scenario(name="rate", load=Load(rate=RATE)),
)


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Cores on which the parts run; None: wherever the system likes."""

    gateway: int | None
    mock: int | None
    generator: int | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Gateway under one load, which is measured in each round."""

    scenario: Scenario
    gateway: Gateway
    running: Running
    request: Path
    """File of the request."""


def main() -> None:
    """Measure, print the tables, and write them."""
    options = arguments()
    root = options.root.resolve()
    report = conditions(root)
    if report["load"] > BUSY:
        print(f"The machine is busy (load {report['load']}): only ratios count, and they vary.", flush=True)
    known = [*GATEWAYS, *signoff_gateways(root)]
    chosen, missing = choose(known, options.gateways)
    scenarios = [each for each in SCENARIOS if not options.scenarios or each.name in options.scenarios]
    with ExitStack() as stack:
        turns = [*start(chosen, scenarios, cores(), stack)]
        minutes = len(turns) * (options.rounds * (options.seconds + options.warmup + 0.4) + 1) / 60
        print(f"{len(turns)} turns in each of {options.rounds} rounds, about {minutes:.0f} minutes", flush=True)
        figures = [*measure(turns, cores(), options)]
        trees = {turn.gateway.name: turn.running.tree for turn in turns}
        report["memory_mb"] = {name: round(tree.memory_mb(), 1) for name, tree in trees.items() if tree}
    report["versions"] = {gateway.name: gateway.version() for gateway in chosen}
    report |= {"missing": missing, "rounds": options.rounds, "seconds": options.seconds}
    report["tables"] = tables(report, figures, {each.name: (each.title, each.lacks) for each in known})
    for table in report["tables"]:
        show(table)
    write(options.out, {**report, "figures": figures})


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="checkout of Signoff")
    parser.add_argument("--gateways", type=names, help="names with commas between them; default: all that there are")
    parser.add_argument("--scenarios", type=names, help="names with commas between them; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="duration of a turn")
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before that, which do not count")
    parser.add_argument("--requests", type=int, default=0, help="maximum number of requests of a turn; 0: no maximum")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench/gateways.json", help="file for the result as JSON")
    return parser.parse_args()


def names(text: str) -> list[str]:
    """Return the names in a text that have commas between them."""
    return [name.strip() for name in text.split(",")]


def choose(known: Sequence[Gateway], wanted: Sequence[str] | None) -> tuple[list[Gateway], list[str]]:
    """Return the wanted gateways that are installed, and the names of those that are not; None wants all.

    Raises:
        SystemExit: if a gateway that was named is unknown or not installed.
    """
    unknown = {*(wanted or ())} - {each.name for each in known}
    if unknown:
        raise SystemExit(
            f"--gateways must be among {', '.join(each.name for each in known)} (got {', '.join(sorted(unknown))})."
        )
    named = [each for each in known if wanted is None or each.name in wanted]
    missing = [each.name for each in named if each.version() is None]
    if missing and wanted is not None:
        raise SystemExit(f"--gateways: {', '.join(missing)} is not installed: run `make bench-peers`.")
    if missing:
        print(f"Left out, because not installed (`make bench-peers` does): {', '.join(missing)}", flush=True)
    return [each for each in named if each.name not in missing], missing


def cores() -> Cores:
    """Return the cores for the parts: the gateway has one for itself if there are two."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) == 1:
        return Cores(gateway=None, mock=None, generator=None)
    return Cores(gateway=available[0], mock=available[1], generator=available[-1])


def start(gateways: Sequence[Gateway], scenarios: Sequence[Scenario], on: Cores, stack: ExitStack) -> Iterator[Turn]:
    """Start the mock and each gateway, see that it answers, and stop it until its turn; yield the turns of a round."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signoff-bench-")))
    folder.chmod(0o755)
    upstream = stack.enter_context(mock(on.mock, made(folder / "mock")))
    running = dict[str, Running]()
    for gateway in gateways:
        place = made(folder / gateway.name)
        running[gateway.name] = gateway.start(upstream, place, on.gateway)
        if tree := running[gateway.name].tree:
            stack.callback(tree.close)
        wait_for_answer(running[gateway.name], request_of(Load(equal=True), running[gateway.name]))
        if tree:
            tree.pause()
        print(f"{gateway.name} answers", flush=True)
    for scenario in scenarios:
        for gateway in gateways:
            if gateway.name not in scenario.gateways and (scenario.gateways or gateway.variant):
                continue
            request = folder / gateway.name / scenario.name
            request.write_bytes(request_of(scenario.load, running[gateway.name]))
            yield Turn(scenario=scenario, gateway=gateway, running=running[gateway.name], request=request)


def made(folder: Path) -> Path:
    """Create a folder, and return it."""
    folder.mkdir()
    return folder


def request_of(load: Load, running: Running) -> bytes:
    """Return a request to a gateway."""
    return template(load, path=running.path, model=running.model, port=running.port, headers=running.headers)


def measure(turns: Sequence[Turn], on: Cores, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the figures of each turn of each round, but for those of a first round that warms up."""
    for number in range(options.rounds + 1):
        for turn in turns:
            seconds = options.seconds if number else min(WARMUP_ROUND_SECONDS, options.seconds)
            tree = turn.running.tree
            if tree:
                tree.resume()
            before = tree.cpu_seconds() if tree else 0
            figures = run_load(
                turn.scenario.load,
                turn.request,
                turn.running.port,
                seconds=seconds,
                core=on.generator,
                warmup=options.warmup if number else 0,
                requests=options.requests,
            )
            if tree:
                time.sleep(SETTLE_SECONDS)
                cpu_us = (tree.cpu_seconds() - before) / max(1, figures.answers) * 1e6
                tree.pause()
            if number:
                place = {"round": number, "scenario": turn.scenario.name, "gateway": turn.gateway.name}
                yield {**place, "cpu_us": round(cpu_us, 1) if tree else None, **asdict(figures)}
        print(f"round {number} of {options.rounds}" if number else "warm", flush=True)


if __name__ == "__main__":
    main()
