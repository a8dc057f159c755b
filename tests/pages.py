"""The parts of the documentation that come from the code; `python tests/pages.py` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from faults.page import rounds
from signoff import errors
from signoff.core.job import TRANSITIONS, Transition
from signoff.settings import Settings

ROOT = Path(__file__).parent.parent


def moves() -> str:
    """The table of the moves."""
    rows = [f"| {move.verb} | {_way(move)} | {_guards(move)} | {move.meaning} |" for move in TRANSITIONS.values()]
    return "\n".join(["| verb | from → to | only if | meaning |", "|---|---|---|---|", *rows])


def settings() -> str:
    """The table of the settings."""
    rows = [
        f"| `{name}` | `SIGNOFF_{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| in the file | in the environment | default | |", "|---|---|---|---|", *rows])


def codes() -> str:
    """The table of the error codes that have a class."""
    rows = [f"| `{kind.code}` | {kind.status} | {_first_line(kind)} |" for kind in _kinds(errors.SignoffError)]
    return "\n".join(["| code | status | |", "|---|---|---|", *rows])


PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("ARCHITECTURE.md", "moves"): moves,
    ("docs/settings.md", "settings"): settings,
    ("docs/errors.md", "codes"): codes,
    ("docs/reliability.md", "rounds"): rounds,
}


def written(page: str, part: str, text: str) -> str:
    """The page with `text` as that part."""
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    before, rest = (ROOT / page).read_text().split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def _way(move: Transition) -> str:
    return f"{', '.join(move.sources) or '–'} → {', '.join(move.targets)}"


def _guards(move: Transition) -> str:
    return "; ".join(guard.value for guard in move.guards)


def _shown(default: object) -> str:
    return "none" if default is None else f"`{default}`"


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
