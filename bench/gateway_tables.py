"""Tables from the figures of gateways: medians of rounds with the least and the greatest value.

A figure is a dict with the round, the scenario, the gateway, `cpu_us` and the fields of `load.Figures`. Ratios are
formed within a round, because rounds differ more than turns that follow each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Figure = Mapping[str, Any]
RATE = 900
"""Requests per second of the scenario with a fixed rate."""
LEAST_SHARE = 0.95
"""Share of a rate that a gateway must answer, so that its latency at that rate is shown."""
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Columns of a table, and the cells of a row."""

    columns: tuple[str, ...]
    cells: Callable[["Row"], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures of a gateway under a load, and beside each that of nginx and of the mock in the same round."""

    figures: Sequence[Figure]
    nginx: Sequence[Figure]
    """Figures of nginx, one for each; empty without nginx."""
    direct: Sequence[Figure]
    """Figures of the mock, one for each; empty if it was not asked."""

    def values(self, name: str) -> list[float]:
        """Return a field of each figure."""
        return [each[name] for each in self.figures]

    def added(self, name: str) -> list[float]:
        """Return by how much a field is greater than that of the mock."""
        return [one[name] - other[name] for one, other in zip(self.figures, self.direct, strict=True)]


def tables(report: Mapping[str, Any], figures: Sequence[Figure], titles: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """Return the tables of a run.

    `titles` has the title of each gateway, and what it does not do. A table without figures is left out.
    """
    rows = [
        [f"{titles[name][0]} {version}".strip(), _number(report["memory_mb"].get(name), 0), titles[name][1] or NONE]
        for name, version in report["versions"].items()
    ]
    rows += [[titles[name][0], NONE, "not installed, so not in the run"] for name in report["missing"]]
    first = {
        "title": "Gateways",
        "columns": ["gateway", "memory after the run, MB", "not done in the run"],
        "rows": rows,
    }
    return [first, *(each for each in (_table(*one, figures, titles) for one in TABLES) if each["rows"])]


def _table(
    title: str, kind: Kind, scenarios: Mapping[str, str], figures: Sequence[Figure], titles: Mapping[str, Any]
) -> Figure:
    """Return a table with a row for each gateway under each of the scenarios, the first of which nginx has."""
    rows = [
        [titles[name][0] + suffix + _failures(row.figures), *kind.cells(row)]
        for scenario, suffix in scenarios.items()
        for name in titles
        if (row := _row(figures, scenario, name, next(iter(scenarios)))).figures
    ]
    return {"title": title, "columns": kind.columns, "rows": rows}


def _row(figures: Sequence[Figure], scenario: str, gateway: str, beside: str) -> Row:
    own = [each for each in figures if (each["scenario"], each["gateway"]) == (scenario, gateway)]
    rounds = {(each["scenario"], each["gateway"], each["round"]): each for each in figures}

    def of(other: str) -> Iterator[Figure]:
        for each in own:
            if figure := rounds.get((beside, other, each["round"])):
                yield figure

    return Row(figures=own, nginx=[*of("nginx")], direct=[*of("direct")])


def _failures(figures: Sequence[Figure]) -> str:
    failures = sum(each["failures"] for each in figures)
    return f" ({failures:,} of {sum(each['due'] for each in figures):,} failed)" if failures else ""


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median with the least and the greatest value.

    >>> spread([3, 1, 2])
    '2 (1–3)'
    """
    least, middle, greatest = (f"{each:,.{digits}f}" for each in (min(values), median(values), max(values)))
    return f"{middle} ({least}–{greatest})" if len(values) > 1 else middle


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _ratio(row: Row) -> str:
    """Return the rate as a multiple of that of nginx."""
    if not row.nginx or not all(each["rate"] for each in row.nginx):
        return NONE
    return spread([one["rate"] / other["rate"] for one, other in zip(row.figures, row.nginx, strict=True)], 3)


def _cpu(row: Row) -> str:
    return NONE if row.figures[0]["cpu_us"] is None else spread(row.values("cpu_us"))


def _latencies(row: Row, *names: str) -> list[str]:
    """Return the medians of latencies; none if there was no answer."""
    return [_number(median(row.values(name)) or None, 2) for name in names]


def _whole(row: Row) -> tuple[str, ...]:
    return (spread(row.values("rate")), _ratio(row), _cpu(row), *_latencies(row, "p50_ms", "p99_ms"))


def _stream(row: Row) -> tuple[str, ...]:
    return (spread(row.values("rate")), _ratio(row), _cpu(row), *_latencies(row, "first_ms", "p50_ms", "p99_ms"))


def _paced(row: Row) -> tuple[str, ...]:
    return (_cpu(row), *_latencies(row, "first_ms", "p50_ms", "p99_ms"))


def _fixed_rate(row: Row) -> tuple[str, ...]:
    if median(row.values("rate")) < LEAST_SHARE * RATE:
        return (f"only {median(row.values('rate')):,.0f}/s", NONE, NONE, NONE, _cpu(row))
    latencies = [spread(row.values(name), 2) for name in ("p50_ms", "p99_ms")]
    added = [spread(row.added(name), 2) if row.direct else NONE for name in ("p50_ms", "p99_ms")]
    return (*latencies, *added, _cpu(row))


WHOLE = Kind(columns=("gateway", "requests/s", "× nginx", "CPU µs a request", "p50 ms", "p99 ms"), cells=_whole)
STREAM = Kind(
    columns=("gateway", "streams/s", "× nginx", "CPU µs a stream", "first event ms", "p50 ms", "p99 ms"), cells=_stream
)
PACED = Kind(columns=("gateway", "CPU µs a stream", "first event ms", "p50 ms", "p99 ms"), cells=_paced)
FIXED_RATE = Kind(
    columns=("gateway", "p50 ms", "p99 ms", "added to p50, ms", "added to p99, ms", "CPU µs a request"),
    cells=_fixed_rate,
)
TABLES: tuple[tuple[str, Kind, Mapping[str, str]], ...] = (
    ("New prompts, 64 connections", WHOLE, {"miss": "", "variants": "", "hit": ", answered from its cache"}),
    ("New prompts, 1 connection", WHOLE, {"miss-1": ""}),
    ("New prompts, 256 connections", WHOLE, {"miss-256": ""}),
    ("Streams of 50 events, as fast as they are read, 64 connections", STREAM, {"stream": ""}),
    ("Streams of 50 events, one each 10 ms, 64 connections", PACED, {"stream-paced": ""}),
    ("Prompts of 50 KB, 64 connections", WHOLE, {"body-50k": ""}),
    ("Prompts of 300 KB, 64 connections", WHOLE, {"body-300k": ""}),
    (f"{RATE} requests/s, whatever the answers take", FIXED_RATE, {"rate": ""}),
)
"""Title, columns, and the scenarios with what their rows add to the name of a gateway."""
