"""Generated parts of the documentation. Run `make pages` to write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import SecretStr

import reference
from faults.page import rounds
from signoff import errors
from signoff.commands.init import attribute_docstrings
from signoff.core.metrics import METRICS
from signoff.core.transitions import TRANSITIONS, Transition
from signoff.settings import Settings, StreamSettings

ROOT = Path(__file__).parent.parent
TYPES = {
    bool: "boolean",
    float: "number",
    int: "integer",
    str: "text",
    Path: "path",
    SecretStr: "text",
    StreamSettings: "table",
}


def transitions() -> str:
    """Return the table of transitions."""
    rows = [
        f"| {transition.verb} | {_way(transition)} | {_guards(transition)} | {transition.meaning} |"
        for transition in TRANSITIONS.values()
    ]
    return "\n".join(["| verb | from → to | only if | meaning |", "|---|---|---|---|", *rows])


def settings() -> str:
    """Return the table of settings."""
    descriptions = attribute_docstrings(Settings)
    rows = [
        f"| `{name}` | `SIGNOFF_{name.upper()}` | {_type(field.annotation)} | {_shown(field.default)} "
        f"| {descriptions[name]} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | environment variable | type | default | effect |", "|---|---|---|---|---|", *rows])


def codes() -> str:
    """Return the table of error codes that have a class."""
    kinds = _kinds(errors.SignoffError)
    rows = [f"| `{kind.code}` | {reference.status_of(kind)} | {_first_line(kind)} |" for kind in kinds]
    return "\n".join(["| code | status | meaning |", "|---|---|---|", *rows])


def metrics() -> str:
    """Return the table of metrics."""
    rows = [
        f"| `{metric.name}` | {metric.type} | {', '.join(f'`{label}`' for label in metric.labels) or '–'} "
        f"| {metric.unit or '–'} | {metric.meaning} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | type | labels | unit | meaning |", "|---|---|---|---|---|", *rows])


def measured(name: str) -> str:
    """Return the tables of a measurement: the file that a program in `bench/` wrote with `--out`, if there is one."""
    path = ROOT / "bench" / "results" / f"{name}.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    place = "Measured on {date} with Python {python} on {cores} cores, at a load of {load}.".format(**result)
    if "processor" in result:
        place += "\nThe machine: {processor}, {memory_gb} GB, {system}; the commit: {checkout}.".format(**result)
    tables = result.get("tables", [result])
    return "\n\n".join([place, *(part for table in tables for part in _measured_table(table))])


def _measured_table(table: dict[str, Any]) -> Iterator[str]:
    """Yield the title of a table, if it has one, and the table."""
    if "title" in table:
        yield f"{table['title']}:"
    head, *rows = [f"| {' | '.join(row)} |" for row in [table["columns"], *table["rows"]]]
    yield "\n".join([head, f"|{'---|' * len(table['columns'])}", *rows])


MEASUREMENTS = (
    "start",
    "calls",
    "history-sqlite",
    "history-postgresql",
    "jobs-sqlite",
    "jobs-postgresql",
    "batches",
    "reviews-sqlite",
    "reviews-postgresql",
    "restore",
    "gateways",
    "queues",
)
PARTS: dict[tuple[str, str], Callable[[], str]] = {
    **{("docs/performance.md", name): partial(measured, name) for name in MEASUREMENTS},
    ("ARCHITECTURE.md", "transitions"): transitions,
    ("docs/settings.md", "settings"): settings,
    ("docs/errors.md", "codes"): codes,
    ("docs/metrics.md", "metrics"): metrics,
    ("docs/reliability.md", "rounds"): rounds,
    ("docs/routes.md", "routes"): reference.routes,
    ("docs/cli.md", "commands"): reference.commands,
    ("docs/states.md", "transitions"): transitions,
    ("docs/faq.md", "questions"): reference.questions,
}
FILES: dict[str, Callable[[], str]] = {"docs/images/states.svg": reference.diagram}


def written(page: str, part: str, text: str) -> str:
    """Return the page with `text` as that part."""
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    before, rest = (ROOT / page).read_text().split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def _way(transition: Transition) -> str:
    return f"{', '.join(transition.sources) or '–'} → {', '.join(transition.targets)}"


def _guards(transition: Transition) -> str:
    return "; ".join(guard.value for guard in transition.guards)


def _type(annotation: Any) -> str:
    """Return the name of a setting's type for a reader who may not know Python."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) is list:
        return f"list of {TYPES.get(parts[0]) or _type(parts[0])}s"
    return TYPES.get(annotation) or _type(parts[0])


def _shown(default: object) -> str:
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return "none" if default is None else f"`{text}`"


def _first_line(kind: type[errors.SignoffError]) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _kinds(kind: type[errors.SignoffError]) -> Iterator[type[errors.SignoffError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _kinds(below)


if __name__ == "__main__":
    for (page, part), make in PARTS.items():
        (ROOT / page).write_text(written(page, part, make()))
    for file, make in FILES.items():
        (ROOT / file).write_text(make())
