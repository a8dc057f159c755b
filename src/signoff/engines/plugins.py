"""Kinds of models that installed packages bring: entry points of the group `signoff.engines`, each naming a class."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection

from signoff.engine import Engine
from signoff.errors import SignoffError

GROUP = "signoff.engines"


class BadExtension(SignoffError):
    """An engine that an installed package brings cannot be used."""

    code = "bad_extension"


def plugin_kinds() -> list[str]:
    """Their names, without a look at whether they can be used."""
    return [point.name for point in importlib.metadata.entry_points(group=GROUP)]


def load_plugins(taken: Collection[str]) -> dict[str, Engine]:
    """The engines, by their kinds. Raises BadExtension: a server without one would fail its models' callers instead."""
    engines = dict[str, Engine]()
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name in taken or point.name in engines:
            raise BadExtension(f"The kind {point.name} of {point.value} is taken: its entry point needs another name.")
        try:
            engines[point.name] = point.load()()
        except Exception as error:
            raise BadExtension(f"The engine {point.name} ({point.value}) cannot be used: {error!r}") from error
    return engines
