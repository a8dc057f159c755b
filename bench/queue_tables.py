"""Tables from the figures of job queues: medians of rounds with the least and the greatest value.

A figure is a dict with the round, the system, and the numbers that `queues.take_turn` returns.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gateway_tables import NONE, Figure, spread

COLUMNS = (
    "queue",
    "steady, jobs/s",
    "× Celery",
    "CPU µs a job",
    "accepted/s",
    "backlog, jobs/s",
    "idle p50 ms",
    "idle p99 ms",
)


def tables(report: Mapping[str, Any], figures: Sequence[Figure], titles: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """Return the tables of a run; `titles` has the title of each queue, and where it keeps its jobs."""
    rows = [[f"{titles[name][0]} {version}", titles[name][1]] for name, version in report["versions"].items()]
    rows += [[titles[name][0], "not installed, so not in the run"] for name in report["missing"]]
    rows += [[f"{name} {version}", "with its own defaults"] for name, version in report["services"].items()]
    return [
        {"title": "Queues", "columns": ("queue", "where its jobs are"), "rows": rows},
        {
            "title": f"{report['jobs']:,} jobs",
            "columns": COLUMNS,
            "rows": [_row(titles[name][0], _of(figures, name), _of(figures, "celery")) for name in report["versions"]],
        },
    ]


def _of(figures: Sequence[Figure], system: str) -> dict[int, Figure]:
    """Return the figures of a queue by round."""
    return {each["round"]: each for each in figures if each["system"] == system}


def _row(title: str, own: Mapping[int, Figure], celery: Mapping[int, Figure]) -> list[str]:
    def values(name: str) -> list[float]:
        return [each[name] for each in own.values()]

    ratios = [each["steady"] / celery[number]["steady"] for number, each in own.items() if number in celery]
    latencies = [f"{median(values(name)):,.1f}" for name in ("idle_p50_ms", "idle_p99_ms")]
    return [
        title,
        spread(values("steady")),
        spread(ratios, 2) if ratios else NONE,
        spread(values("cpu_us")),
        spread(values("accepted")),
        spread(values("backlog")),
        *latencies,
    ]
