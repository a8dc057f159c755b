"""Report of a round: its figures as one line and as a JSON file, from which docs/reliability.md is made."""

from __future__ import annotations

import bisect
import os
import platform
import re
import sqlite3
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from faults import servers
from faults.checker import SECOND_US, Check, HistoryIndex, Lease
from faults.round import Round
from faults.walk import Finding
from support.service_supervisor import MissingError

SHOWN_OF_A_LAW = 5
COUNTED = ("lost", "unexpected", "duplicated", "stale", "held-seen", "undelivered")


class Row(msgspec.Struct, frozen=True):
    """The figures of one kind of fault.

    `recovery` is the time from the end of the fault to the first answer of a job that was claimed after it; `rescue` is
    the time from its beginning to the next answer of each job that it affected. Both are in seconds.
    """

    name: str
    doing: str
    tried: int
    struck: int
    jobs: int
    requests: int
    recovery_p50: float | None
    recovery_p99: float | None
    rescue_p50: float | None
    rescue_p99: float | None


class Figures(msgspec.Struct, frozen=True):
    """The figures of a round in one setting."""

    name: str
    seed: int
    day: str
    seconds: float
    has_disk: bool
    counts: dict[str, int]
    more: dict[str, float]
    faults: list[Row]
    findings: list[Finding]
    laws: dict[str, int]


class Report(msgspec.Struct, frozen=True):
    """The figures of several rounds, and the machine on which they ran."""

    round: str
    machine: dict[str, str]
    rounds: list[Figures]


def figures_of(plan: Round, history: Path, check: Check, seed: int) -> Figures:
    """Return the figures of a round that was checked."""
    index = HistoryIndex(history)
    laws = Counter(finding.law for finding in check.findings)
    return Figures(
        name=plan.name,
        seed=seed,
        day=datetime.fromtimestamp(index.began, UTC).strftime("%Y-%m-%d"),
        seconds=round(index.ended - index.began, 1),
        has_disk=bool(index.by_type["began"][0]["disk"]),
        counts=_counts(index, check, laws),
        more=_further_figures(plan, index, check),
        faults=_faults(index, check),
        findings=_first_of_each_law(check.findings),
        laws=dict(laws),
    )


def _first_of_each_law(findings: list[Finding]) -> list[Finding]:
    """Return the first SHOWN_OF_A_LAW findings of each law."""
    by_law: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_law[finding.law].append(finding)
    return [finding for of_law in by_law.values() for finding in of_law[:SHOWN_OF_A_LAW]]


def _counts(index: HistoryIndex, check: Check, laws: Counter[str]) -> dict[str, int]:
    accepted = index.accepted().keys()
    broken = {finding.job for finding in check.findings}
    good = [job for job in accepted if job not in broken]
    return {
        "attempted": len(index.by_type["asked"]),
        "acknowledged": len(accepted),
        "ok": len(good),
        **{law: laws[law] for law in COUNTED},
        "recovered": check.recovered,
        "other": sum(count for law, count in laws.items() if law not in COUNTED),
    }


def _further_figures(plan: Round, index: HistoryIndex, check: Check) -> dict[str, float]:
    """Return the figures that have no fixed place in the report."""
    statuses = Counter(job.status for job in check.jobs.values())
    codes = Counter(job.code for job in check.jobs.values() if job.code)
    reviewed = Counter(line["status"] for line in index.by_type["reviewed"])
    kills = Counter(line["kind"] for line in index.by_type["killed"])
    drained = [line["seconds"] for line in index.by_type["drained"]]
    return {
        "jobs": len(check.jobs),
        "succeeded": statuses["success"],
        "failed": statuses["fail"],
        "cancelled": codes["cancelled"],
        "rejected": codes["rejected"],
        "interrupted": codes["interrupted"],
        "claims": check.verbs["claim"],
        "leases that lapsed": check.verbs["lapse"],
        "retries": check.verbs["retry"],
        "kills": len(index.by_type["killed"]),
        "kills of workers": kills["worker"],
        "kills of servers": kills["server"],
        "requests without an answer": sum(line["status"] is None for line in index.by_type["told"]),
        "requests told 5xx": sum((line["status"] or 0) >= 500 for line in index.by_type["told"]),
        "verdicts that won": reviewed[200],
        "verdicts that were late": reviewed[409],
        "looks at held jobs": sum(line["held"] for line in index.by_type["looked"]),
        "webhook messages": len(index.by_type["hooked"]),
        "answered calls whose row a kill cost": len(check.unlogged),
        "the longest that one of them was answered before the kill, in seconds": round(
            max(check.unlogged, default=0), 3
        ),
        "drained after seconds": round(drained[0], 1) if drained else -1,
        "limit of a pause in it, in seconds": plan.longest_pause_seconds,
    }


def _faults(index: HistoryIndex, check: Check) -> list[Row]:
    """Return a row for each kind of fault."""
    lines = defaultdict(list)
    for line in index.by_type["fault"]:
        lines[line["name"]].append(line)
    recovery, rescue = _Recovery(check.leases), _Rescue(check.leases)
    rows = list[Row]()
    for name, fault_lines in sorted(lines.items()):
        struck = [line for line in fault_lines if line["struck"]]
        recoveries = sorted(time for line in struck if (time := recovery.after(line["ended"])) is not None)
        rescues = sorted(time for line in struck for time in rescue.of(line["jobs"], line["began"]))
        rows.append(
            Row(
                name=name.replace("_", " "),
                doing=fault_lines[0]["doing"],
                tried=len(fault_lines),
                struck=len(struck),
                jobs=sum(len(line["jobs"]) for line in struck),
                requests=sum(line["requests"] for line in struck),
                recovery_p50=_quantile(recoveries, 0.5),
                recovery_p99=_quantile(recoveries, 0.99),
                rescue_p50=_quantile(rescues, 0.5),
                rescue_p99=_quantile(rescues, 0.99),
            )
        )
    return rows


def _quantile(ordered: list[float], quantile: float) -> float | None:
    """Return the quantile by nearest rank, or None without values."""
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * quantile))], 3) if ordered else None


class _Rescue:
    """The times at which each job was answered."""

    def __init__(self, leases: list[Lease]) -> None:
        self._answers: dict[str, list[int]] = defaultdict(list)
        for lease in leases:
            if lease.answered:
                self._answers[lease.job].append(lease.ended_at)

    def of(self, jobs: list[str], moment: float) -> Iterator[float]:
        """Yield the seconds from `moment` to the next answer of each job that got one."""
        for job in jobs:
            later = [answered / SECOND_US - moment for answered in self._answers[job] if answered > moment * SECOND_US]
            yield from sorted(later)[:1]


class _Recovery:
    """The claims of a round in order of time, each with the earliest answer to it or to a later claim."""

    def __init__(self, leases: list[Lease]) -> None:
        ordered = sorted((lease.began_at, lease.ended_at) for lease in leases if lease.answered)
        self._claimed = [claimed for claimed, _ in ordered]
        self._answered = [answered for _, answered in ordered]
        for index in range(len(ordered) - 2, -1, -1):
            self._answered[index] = min(self._answered[index], self._answered[index + 1])

    def after(self, moment: float) -> float | None:
        """Return the seconds from `moment` to the first answer of a job that was claimed after it, if there is one."""
        index = bisect.bisect_left(self._claimed, moment * SECOND_US)
        return self._answered[index] / SECOND_US - moment if index < len(self._claimed) else None


def line_of(rounds: list[Figures]) -> str:
    """Return the sum of all figures as one line."""
    counts = Counter[str]()
    for figures in rounds:
        counts.update(figures.counts)
    struck = sum(row.struck for figures in rounds for row in figures.faults)
    kills = round(sum(figures.more["kills"] for figures in rounds))
    summary = " ".join(f"{name} {counts[name]}" for name in rounds[0].counts)
    return f"{summary} faults {struck} kills {kills} seed {rounds[0].seed}"


def write(out: Path, name: str, rounds: list[Figures]) -> None:
    """Write the figures to `out` as JSON, with the machine on which they were taken."""
    report = Report(round=name, machine=machine(), rounds=rounds)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def machine() -> dict[str, str]:
    """Return the hardware and versions on which the figures depend."""
    return {
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "PostgreSQL": _version("postgres", "--version"),
        "RabbitMQ": _version("rabbitmq", "version"),
        "SQLite": sqlite3.sqlite_version,
        "Linux": platform.release().partition("-")[0],
    }


def _version(name: str, argument: str) -> str:
    try:
        program = servers.program_of(name)
        program = program.with_name("rabbitmqctl") if name == "rabbitmq" else program
        output = subprocess.run([program, argument], capture_output=True, text=True, timeout=30, check=False).stdout
    except (MissingError, OSError, subprocess.SubprocessError):
        return "unknown"
    version = re.search(r"\d+(\.\d+)+", output)
    return version[0] if version else "unknown"
