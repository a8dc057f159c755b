"""Paths of APIs that models turned out not to have, so that each is tried once and not with every request."""

from cachetools import TTLCache

from signoff.core.model import Model

MAX_ENTRIES = 10_000
# After that time a path is tried again, as an upstream may have been upgraded.
FORGET_SECONDS = 600.0


class MissingPaths:
    """Bounded memory of the API paths that models do not have. A model whose configuration changes is a new one."""

    def __init__(self) -> None:
        self._entries = TTLCache[tuple[Model, str, str], None](MAX_ENTRIES, FORGET_SECONDS)

    def add(self, model: Model, target: str, path: str) -> None:
        """Record that `model`, which was requested as `target`, does not have `path`."""
        self._entries[model, target, path] = None

    def contains(self, model: Model, target: str, path: str) -> bool:
        """Return True if that was recorded within FORGET_SECONDS."""
        return (model, target, path) in self._entries
