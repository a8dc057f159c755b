"""Tables of docs/reliability.md, from the figures of the latest rounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from faults.report import Figures, Report, Row

FIGURES = Path(__file__).parents[2] / "docs" / "reliability"
ORDER = ("long", "short", "upgrade")
SETTINGS = {
    "servers": "PostgreSQL and RabbitMQ, two servers, three workers",
    "old-servers": "two servers of the last release, three workers of this one, on PostgreSQL and RabbitMQ",
    "old-workers": "two servers of this release, three workers of the last one, on PostgreSQL and RabbitMQ",
    "file": "one SQLite file, a server that works too, two workers",
}


def rounds() -> str:
    """Return a Markdown section for each round, with tables for each of its settings."""
    paths = [FIGURES / f"{name}.json" for name in ORDER]
    reports = [msgspec.json.decode(path.read_bytes(), type=Report) for path in paths if path.exists()]
    return "\n\n".join(part for report in reports for part in _report(report))


def _report(report: Report) -> Iterator[str]:
    machine = ", ".join(
        f"{value} cores" if name == "cores" else f"{name} {value}" for name, value in report.machine.items()
    )
    yield f"## The {report.round} round\n\n{machine}."
    for figures in report.rounds:
        yield from _figures(figures)


def _figures(figures: Figures) -> Iterator[str]:
    disk = "" if figures.name != "file" or figures.has_disk else " There was no small disk to fill."
    yield f"### {SETTINGS[figures.name]}\n\n{figures.day}, {figures.seconds:.0f} s, seed {figures.seed}.{disk}"
    yield _table(["", ""], ([name, f"{count:,}"] for name, count in figures.counts.items()))
    yield from (f"**{finding.law}**: {finding.job}: {finding.text.splitlines()[0]}" for finding in figures.findings)
    yield _table(["", ""], ([name, f"{count:,.3f}".rstrip("0").rstrip(".")] for name, count in figures.more.items()))
    head = ["fault", "struck / tried", "jobs", "calls", "next answer, p50 / p99 s", "struck jobs answered, p50 / p99 s"]
    yield _table(head, map(_fault, figures.faults))


def _fault(row: Row) -> list[str]:
    recovery, rescue = _pair(row.recovery_p50, row.recovery_p99), _pair(row.rescue_p50, row.rescue_p99)
    return [
        f"**{row.name}**: {row.doing}",
        f"{row.struck} / {row.tried}",
        str(row.jobs),
        str(row.requests),
        recovery,
        rescue,
    ]


def _pair(p50: float | None, p99: float | None) -> str:
    return "–" if p50 is None or p99 is None else f"{p50:.2f} / {p99:.2f}"


def _table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
