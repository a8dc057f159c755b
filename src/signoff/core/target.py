"""What can be called by name: a model, where it lives, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from signoff.core.policy import Review

Kind = Literal["openai", "subprocess", "echo"]
KINDS: tuple[Kind, ...] = ("openai", "subprocess", "echo")


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a model, in seconds."""

    connect_seconds: float = 5
    first_byte_seconds: float = 300
    between_chunks_seconds: float = 60
    total_seconds: float = 600


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model under a name. A name that ends in `*` stands for everything with that prefix."""

    name: str
    kind: Kind
    url: str | None = None
    upstream_model: str | None = None
    key_id: int | None = None
    command: tuple[str, ...] = ()
    serve: bool = False
    idle_seconds: float = 300
    start_seconds: float = 60
    timeouts: Timeouts = Timeouts()
    attempts: int | None = None
    review: Review | None = None
    default: bool = False


class Listing:
    """Models by the names that they answer to."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {model.name: model for model in self.models}
        longest_first = sorted(self.models, key=lambda model: len(model.name), reverse=True)
        self._echoes = [model for model in longest_first if model.kind == "echo"]
        self._wild = [model for model in longest_first if model.name.endswith("*")]

    def find(self, name: str) -> Model | None:
        """The model for `name`: the exact one, an echo with a suffix, else the longest prefix."""
        if name in self._by_name:
            return self._by_name[name]
        echo = next((model for model in self._echoes if name.startswith(f"{model.name}/")), None)
        return echo or next((model for model in self._wild if name.startswith(model.name[:-1])), None)

    def default(self) -> Model | None:
        """The model that answers when nobody named one: the marked one, else `local`, else `echo`."""
        marked = next((model for model in self.models if model.default), None)
        return marked or self._by_name.get("local") or self._by_name.get("echo")


def upstream_name(model: Model, asked: str) -> str:
    """What the upstream calls the model that was asked for as `asked`."""
    return model.upstream_model or asked
