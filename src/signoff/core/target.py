"""What can be called by name: a model, where it lives, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Literal

import msgspec

from signoff.core.policy import Review

Kind = Literal["openai", "http", "subprocess", "echo"]
ASKED_BY_URL: tuple[Kind, ...] = ("openai", "http")
LONGEST_NAME = 255
KINDS: tuple[Kind, ...] = ("openai", "http", "subprocess", "echo")


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


def is_name(text: str) -> bool:
    """Whether a model can be called that."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()


def flaw_of(model: Model) -> str | None:
    """What is missing or wrong in a model's description, in a sentence."""
    kind, has_url = model.kind, (model.url or "").startswith(("http://", "https://"))
    is_named = is_name(model.name) and "*" not in model.name[:-1]
    flaws = {
        f"A name has 1 to {LONGEST_NAME} printable characters; a * stands at its end.": not is_named,
        f"A model of the kind {kind} needs a url that begins with http:// or https://.": kind in ASKED_BY_URL
        and not has_url,
        "A subprocess model needs a command.": kind == "subprocess" and not "".join(model.command[:1]),
        f"A model of the kind {kind} runs no command.": kind != "subprocess" and bool(model.command or model.serve),
        "A command has no zero bytes.": any("\0" in word for word in model.command),
        "Seconds are more than 0, and less than for ever.": not all(0 < value < inf for value in _seconds_of(model)),
        "A model is asked at least once.": model.attempts is not None and model.attempts < 1,
        "A default model needs a whole name.": model.default and model.name.endswith("*"),
    }
    return next((flaw for flaw, is_so in flaws.items() if is_so), None)


def _seconds_of(model: Model) -> list[float]:
    return [model.idle_seconds, model.start_seconds, *msgspec.structs.astuple(model.timeouts)]


def takes_any_json(model: Model) -> bool:
    """Whether it is asked with the payload as it is; all others speak as OpenAI's API does."""
    return model.kind == "http" or (model.kind == "subprocess" and not model.serve)


def upstream_name(model: Model, asked: str) -> str:
    """What the upstream calls the model that was asked for as `asked`."""
    return model.upstream_model or asked
