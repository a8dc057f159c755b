"""Engines of installed packages: entry points of the group `signoff.engines`, each naming a class."""

import importlib.metadata
import inspect
from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoints

from signoff.engine import Engine
from signoff.errors import SignoffError

GROUP = "signoff.engines"


class BadExtension(SignoffError):
    """The engine of an installed package cannot be used."""

    code = "bad_extension"


def plugin_kinds() -> list[str]:
    """Return the kinds of all entry points, without loading them."""
    return [point.name for point in _entry_points()]


def load_plugins(reserved_kinds: Collection[str]) -> dict[str, Engine]:
    """Load the engines of installed packages, by kind.

    Raises BadExtension if a kind is in `reserved_kinds` or exists twice, or if an engine cannot be loaded: the server
    does not start, because requests to its models would fail.
    """
    engines = dict[str, Engine]()
    for point in _entry_points():
        if point.name in reserved_kinds or point.name in engines:
            raise BadExtension(f"The kind {point.name} of {point.value} exists already: rename the entry point.")
        try:
            engine = engines[point.name] = point.load()()
            has_old_form = inspect.isasyncgenfunction(engine.answer)
        except Exception as error:
            raise BadExtension(f"The engine {point.name} ({point.value}) cannot be used: {error!r}") from error
        if has_old_form:
            raise BadExtension(
                f"The engine {point.name} ({point.value}) yields its answer; return a body, or send events to the sink."
            )
    return engines


@cache
def _entry_points() -> EntryPoints:
    """Return the entry points of the group; finding them reads a file of each installed package."""
    return importlib.metadata.entry_points(group=GROUP)
