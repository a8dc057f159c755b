"""Reference pages that are generated from the code: routes, commands, states, and questions by error code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast
from xml.sax.saxutils import escape

import typer.main
from litestar import Litestar

from signoff.cli import cli
from signoff.core.transitions import TRANSITIONS
from signoff.doors.openapi.document import complete
from signoff.errors import SignoffError
from signoff.server.http import _litestar_app

Schema = dict[str, Any]
JSON = "application/json"
# Places of the states in the diagram, and the size of their boxes.
PLACES = {"": (550, 36), "bot": (290, 200), "human": (810, 200), "success": (290, 430), "fail": (810, 430)}
WIDTH, HEIGHT = 130, 44
MIDDLE = 550
# Statuses of the codes that take theirs from the model.
STATUSES = {"model_access_denied": "401 or 403", "model_error": "that of the model"}
STYLE = """
text { font: 13px sans-serif; fill: #24292f; } .state { font: bold 15px sans-serif; }
.waiting rect { fill: #eef4ff; stroke: #3b6fb6; } .end rect { fill: #f0f0f0; stroke: #707070; }
line, path { stroke: #707070; fill: none; marker-end: url(#arrow); } .label { fill: #ffffff; stroke: none; }
"""


def routes() -> str:
    """Return a table of the routes of each part of the API."""
    document = complete(cast("Litestar", _litestar_app()).openapi_schema.to_schema())
    parts = defaultdict[str, list[str]](list)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parts[operation["tags"][0]].append(_route_row(f"{method.upper()} {path}", operation, document))
    texts = {tag["name"]: tag["description"] for tag in document["tags"]}
    return "\n\n".join("\n".join(_part(name, text, parts[name])) for name, text in texts.items())


def _part(name: str, description: str, rows: list[str]) -> list[str]:
    title = name.capitalize().replace("Openai", "OpenAI")
    head = "| route | effect | parameters | body | answer | errors |"
    return [f"## {title}", "", description, "", head, "|---|---|---|---|---|---|", *rows]


def _route_row(route: str, operation: Schema, document: Schema) -> str:
    parameters = [
        f"`{each['name']}`{'' if each.get('required') else '?'}"
        for each in operation["parameters"]
        if each["in"] != "path"
    ]
    responses = operation["responses"]
    errors = [status for status in responses if status >= "400" and status != "default"]
    success = {status: response for status, response in responses.items() if status < "400"}
    cells = [
        f"`{route}`",
        operation["summary"],
        ", ".join(parameters),
        _members(operation.get("requestBody", {}), document),
        ", ".join(f"{status}{_kind(response)}" for status, response in success.items()),
        ", ".join(errors),
    ]
    return f"| {' | '.join(cells)} |"


def _members(body: Schema, document: Schema) -> str:
    """Return the members of a body; those that may be left out with a question mark."""
    content = next(iter(body.get("content", {}).values()), None)
    if content is None:
        return ""
    schema = content["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    names = [f"`{name}`{'' if name in required else '?'}" for name in schema.get("properties", {})]
    return ", ".join(names) or "any JSON"


def _kind(response: Schema) -> str:
    content = response.get("content", {})
    others = [media_type for media_type in content if media_type != JSON]
    return f" ({', '.join(f'`{other}`' for other in others)})" if others and JSON not in content else ""


def commands() -> str:
    """Return a table of all commands."""
    cli.add_needed()
    rows = [f"| `{' '.join(words)}` | {text} |" for words, text in _commands(typer.main.get_command(cli), ["signoff"])]
    return "\n".join(["| command | effect |", "|---|---|", *rows])


def _commands(command: Any, words: list[str]) -> Iterator[tuple[list[str], str]]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], [*words, name])
    elif not command.hidden:
        yield words, (command.help or "").strip().splitlines()[0]


def questions() -> str:
    """Return a heading with the meaning and the remedy for each error code."""
    kinds = sorted(_kinds(SignoffError), key=lambda kind: (kind.status, kind.code))
    return "\n\n".join(_question(kind) for kind in kinds)


def status_of(kind: type[SignoffError]) -> str:
    """Return the status of an error as the documentation writes it."""
    return STATUSES.get(kind.code, str(kind.status))


def _kinds(kind: type[SignoffError]) -> Iterator[type[SignoffError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == SignoffError.__module__:
            yield from _kinds(below)


def _question(kind: type[SignoffError]) -> str:
    text = (kind.__doc__ or "").splitlines()[0].rstrip(".")
    meaning, _, remedy = text.partition("; ")
    status = "" if kind.code == "model_error" else f"{status_of(kind)} "
    lines = [f"### {status}`{kind.code}`", "", f"{meaning}."]
    return "\n".join([*lines, f"{remedy[0].upper()}{remedy[1:]}."] if remedy else lines)


def diagram() -> str:
    """Return a drawing of the states of a job and its transitions, in SVG."""
    ways = defaultdict[tuple[str, str], list[str]](list)
    for verb, transition in TRANSITIONS.items():
        for source in transition.sources or ("",):
            for target in transition.targets:
                ways[source, target].append(verb)
    drawn = [_way(source, target, verbs) for (source, target), verbs in ways.items()]
    boxes = [_box(name, x, y) for name, (x, y) in PLACES.items() if name]
    start = '<circle cx="550" cy="36" r="9" fill="#3b6fb6"/>'
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 10 5 0 10z" style="fill:#707070;stroke:none"/></marker>'
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1100 480" role="img">',
            "<title>The states of a job, and the transitions between them</title>",
            f"<style>{STYLE}</style>",
            '<rect width="1100" height="480" style="fill:#ffffff;stroke:none"/>',
            f"<defs>{arrow}</defs>",
            *drawn,
            *boxes,
            start,
            "</svg>",
            "",
        ]
    )


def _box(name: str, x: int, y: int) -> str:
    corner = f'x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}" rx="8"'
    kind = "end" if name in {"success", "fail"} else "waiting"
    text = f'<text class="state" x="{x}" y="{y + 5}" text-anchor="middle">{name}</text>'
    return f'<g class="{kind}"><rect {corner}/>{text}</g>'


def _way(source: str, target: str, verbs: list[str]) -> str:
    """Return the arrow of all transitions from one state to another, with their names."""
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    if source == target:
        side = -1 if x1 < MIDDLE else 1
        edge = x1 + side * WIDTH // 2
        loop = f"M{edge} {y1 - 10} C{edge + side * 50} {y1 - 45} {edge + side * 50} {y1 + 45} {edge} {y1 + 10}"
        rows = _wrapped(verbs, 2)
        return f'<path d="{loop}"/>{_label(edge + side * 110, y1 - 8 * len(rows) + 12, rows)}'
    begin, end = (_border(x1, y1, x2, y2) if source else (x1, y1 + 9)), _border(x2, y2, x1, y1)
    if y1 == y2:  # the way back is beside it
        begin, end = ((x, y - 9 if x1 < x2 else y + 9) for x, y in (begin, end))
    share = 0.3 if source and x1 != x2 else 0.5
    middle = (begin[0] + (end[0] - begin[0]) * share, begin[1] + (end[1] - begin[1]) * share)
    line = f'<line x1="{begin[0]:.0f}" y1="{begin[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}"/>'
    return line + _label(round(middle[0]), round(middle[1]) + 4, _wrapped(verbs, 3))


def _wrapped(verbs: list[str], number: int) -> list[str]:
    """Return the names in rows of at most that many."""
    return [", ".join(verbs[at : at + number]) for at in range(0, len(verbs), number)]


def _label(x: int, y: int, rows: list[str]) -> str:
    """Return rows of names on a white ground, the middle of the first of which is at a place."""
    width, height = max(map(len, rows)) * 7 + 8, 16 * len(rows) + 4
    ground = f'<rect class="label" x="{x - width // 2}" y="{y - 13}" width="{width}" height="{height}"/>'
    lines = [(y + 16 * at, escape(row)) for at, row in enumerate(rows)]
    return ground + "".join(f'<text x="{x}" y="{top}" text-anchor="middle">{row}</text>' for top, row in lines)


def _border(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Return the point at which the line to another place leaves the box at a place."""
    dx, dy = to_x - x, to_y - y
    share = min(WIDTH / 2 / abs(dx) if dx else 1e9, HEIGHT / 2 / abs(dy) if dy else 1e9)
    return x + dx * share, y + dy * share
