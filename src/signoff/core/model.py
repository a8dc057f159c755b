"""What can be called by name: a model, where it lives, and how long it may take; a prompt; a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Literal

import msgspec

from signoff.core.cache import CacheRule
from signoff.core.fingerprint import fingerprint
from signoff.core.policy import Review

# An extension brings kinds of its own: which there are, the table of the engines tells.
ModelKind = str
HTTP_KINDS: tuple[ModelKind, ...] = ("openai", "http")
# Those that a caller's own upstream key is sent to.
KINDS_WITH_KEYS: tuple[ModelKind, ...] = ("openai", "http", "anyllm")
MAX_NAME_LENGTH = 255
# An endpoint: its address, and what its upstream calls the model.
EndpointName = tuple[str, str | None]
Balance = Literal["least-load", "prefix-hash"]
BALANCES: tuple[Balance, ...] = ("least-load", "prefix-hash")
MOST_ENDPOINTS = 64
MOST_FALLBACKS = 8
MOST_WAITING = 100_000
MOST_PARALLEL = 1_000_000
MOST_ATTEMPTS = 1_000_000
# A no-break space, which no name that anybody registers has.
_REPLICA = "\N{NO-BREAK SPACE}#"


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a model, in seconds."""

    connect_seconds: float = 5
    first_byte_seconds: float = 300
    between_chunks_seconds: float = 60
    total_seconds: float = 600


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One of several addresses of a model. What is None there is as the model has it."""

    url: str
    upstream_model: str | None = None
    key_id: int | None = None
    max_parallel: int | None = None


class ProcessLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each process of a model's program may take; None for what this server may."""

    memory_mb: int | None = None
    open_files: int | None = None
    nice: int | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model under a name. A name that ends in `*` stands for everything with that prefix.

    `max_parallel` requests are asked at once at each endpoint, by each of our processes; `max_waiting` more wait their
    turn for `queue_seconds`. `fallbacks` name models that are asked where no endpoint answers.
    """

    name: str
    kind: ModelKind
    url: str | None = None
    upstream_model: str | None = None
    key_id: int | None = None
    command: tuple[str, ...] = ()
    serve: bool = False
    idle_seconds: float = 300
    start_seconds: float = 60
    timeouts: Timeouts = Timeouts()
    limits: ProcessLimits = ProcessLimits()
    attempts: int | None = None
    review: Review | None = None
    coalesce: bool | None = None
    default: bool = False
    cache: CacheRule | None = None
    endpoints: tuple[EndpointConfig, ...] = ()
    replicas: int = 1
    balance: Balance = "least-load"
    max_parallel: int | None = None
    max_waiting: int = 1000
    queue_seconds: float = 60
    fallbacks: tuple[str, ...] = ()


class ModelIndex:
    """Models by the names that they answer to."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {model.name: model for model in self.models}
        longest_first = sorted(self.models, key=lambda model: len(model.name), reverse=True)
        self._echoes = [model for model in longest_first if model.kind == "echo"]
        self._wild = [model for model in longest_first if model.name.endswith("*")]
        self._versions: dict[str, str] = {}

    def find(self, name: str) -> Model | None:
        """The model for `name`: the exact one, an echo with a suffix, else the longest prefix.

        What cannot be printed is nobody's name.
        """
        if name in self._by_name:
            return self._by_name[name]
        if not name.isprintable():
            return None
        echo = next((model for model in self._echoes if name.startswith(f"{model.name}/")), None)
        return echo or next((model for model in self._wild if name.startswith(model.name[:-1])), None)

    def has_exact(self, name: str) -> bool:
        """Whether a model is called exactly that, or is an echo with a suffix."""
        return name in self._by_name or (
            name.isprintable() and any(name.startswith(f"{model.name}/") for model in self._echoes)
        )

    def version_of(self, model: Model) -> str:
        """See `version_of`, which is asked once for each of these models."""
        if self._by_name.get(model.name) is not model:
            return version_of(model)
        if model.name not in self._versions:
            self._versions[model.name] = version_of(model)
        return self._versions[model.name]

    def default(self) -> Model | None:
        """The model that answers when nobody named one: the marked one, else `local`, else `echo`."""
        marked = next((model for model in self.models if model.default), None)
        return marked or self._by_name.get("local") or self._by_name.get("echo")


def is_name(text: str) -> bool:
    """Whether a model can be called that."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable() and text == text.strip()


def model_fault(model: Model) -> str | None:
    """What is missing or wrong in a model's description, in a sentence."""
    kind, has_url = model.kind, (model.url or "").startswith(("http://", "https://"))
    is_named = is_name(model.name) and "*" not in model.name[:-1]
    flaws = {
        f"A name has 1 to {MAX_NAME_LENGTH} printable characters; a * stands at its end.": not is_named,
        f"A model of the kind {kind} needs a url that begins with http:// or https://.": kind in HTTP_KINDS
        and not (has_url or model.endpoints),
        "A model of the kind anyllm says PROVIDER/MODEL, as its upstream_model or as its name.": kind == "anyllm"
        and "/" not in (model.upstream_model or model.name),
        "A subprocess model needs a command.": kind == "subprocess" and not "".join(model.command[:1]),
        f"A model of the kind {kind} runs no command.": kind != "subprocess" and bool(model.command or model.serve),
        f"A model of the kind {kind} is no program that could be limited.": kind != "subprocess"
        and model.limits != ProcessLimits(),
        "A program has 8 MiB of memory and 16 open files at least, and a niceness from 0 to 19.": not _are_valid_limits(
            model.limits
        ),
        "A command has no zero bytes.": any("\0" in word for word in model.command),
        "Seconds are more than 0, and less than for ever.": not all(0 < value < inf for value in _seconds_of(model)),
        f"A model is asked once, and {MOST_ATTEMPTS} times at most.": model.attempts is not None
        and not 0 < model.attempts <= MOST_ATTEMPTS,
        "A default model needs a whole name.": model.default and model.name.endswith("*"),
    }
    return next((flaw for flaw, is_so in (flaws | _endpoint_faults(model)).items() if is_so), None)


def _endpoint_faults(model: Model) -> dict[str, bool]:
    """Flaws of endpoints, replicas, limits and fallbacks."""
    limits = [model.max_parallel, *(each.max_parallel for each in model.endpoints)]
    names = [(each.url, each.upstream_model) for each in model.endpoints]
    return {
        f"A model of the kind {model.kind} has no endpoints.": model.kind not in HTTP_KINDS and bool(names),
        "A model has a url or endpoints, not both.": bool(model.url and names),
        "Each endpoint needs a url that begins with http:// or https://.": not all(
            url.startswith(("http://", "https://")) for url, _ in names
        ),
        "Each endpoint is named once.": len(set(names)) < len(names),
        f"A model has up to {MOST_ENDPOINTS} endpoints, or replicas.": len(names) > MOST_ENDPOINTS
        or not 1 <= model.replicas <= MOST_ENDPOINTS,
        "Replicas are processes: only a subprocess model has several.": model.kind != "subprocess"
        and model.replicas != 1,
        f"max_parallel is from 1 to {MOST_PARALLEL}.": any(
            limit is not None and not 0 < limit <= MOST_PARALLEL for limit in limits
        ),
        f"max_waiting is from 0 to {MOST_WAITING}.": not 0 <= model.max_waiting <= MOST_WAITING,
        f"A model has up to {MOST_FALLBACKS} fallbacks, which are names of others.": len(model.fallbacks)
        > MOST_FALLBACKS
        or not all(is_name(name) and name != model.name for name in model.fallbacks),
    }


def _seconds_of(model: Model) -> list[float]:
    return [model.idle_seconds, model.start_seconds, model.queue_seconds, *msgspec.structs.astuple(model.timeouts)]


def has_single_endpoint(model: Model) -> bool:
    """Whether it is in one place, without a limit and without another to ask instead."""
    return not (model.endpoints or model.fallbacks or model.max_parallel is not None or model.replicas > 1)


def endpoints_of(model: Model) -> tuple[Model, ...]:
    """The model as it is at each of its endpoints; a replica of a process has a name of its own."""
    if model.endpoints:
        return tuple(_at(model, endpoint) for endpoint in model.endpoints)
    more = (msgspec.structs.replace(model, name=f"{model.name}{_REPLICA}{n}") for n in range(2, model.replicas + 1))
    return (model, *more)


def _at(model: Model, endpoint: EndpointConfig) -> Model:
    return msgspec.structs.replace(
        model,
        endpoints=(),
        url=endpoint.url,
        upstream_model=endpoint.upstream_model or model.upstream_model,
        key_id=model.key_id if endpoint.key_id is None else endpoint.key_id,
        max_parallel=endpoint.max_parallel or model.max_parallel,
    )


def registered_name(name: str) -> str:
    """The name of the model that `name` is a replica of, or `name` itself."""
    return name.partition(_REPLICA)[0]


def with_known_keys(model: Model, known: Model) -> Model:
    """`model`, whose endpoints keep the keys that they had in `known`."""
    named = {(each.url, each.upstream_model): each.key_id for each in known.endpoints}
    at = {each.url: each.key_id for each in known.endpoints}
    kept = [
        msgspec.structs.replace(
            each, key_id=each.key_id or named.get((each.url, each.upstream_model), at.get(each.url))
        )
        for each in model.endpoints
    ]
    return msgspec.structs.replace(model, endpoints=tuple(kept))


def with_new_keys(
    model: Model, add: Callable[[bytes], int], own: bytes | None, at: Mapping[EndpointName, bytes]
) -> Model:
    """`model` with new keys, which `add` numbers: its `own`, and those `at` its endpoints."""
    endpoints = [
        msgspec.structs.replace(each, key_id=add(at[each.url, each.upstream_model]))
        if (each.url, each.upstream_model) in at
        else each
        for each in model.endpoints
    ]
    key_id = model.key_id if own is None else add(own)
    return msgspec.structs.replace(model, key_id=key_id, endpoints=tuple(endpoints))


def without_keys(model: Model) -> Model:
    """`model`, asked without any."""
    endpoints = [msgspec.structs.replace(each, key_id=None) for each in model.endpoints]
    return msgspec.structs.replace(model, key_id=None, endpoints=tuple(endpoints))


def with_existing_keys(model: Model, old: Model) -> Model:
    """`model` as it takes the place of `old`, whose keys it goes on with."""
    return with_known_keys(msgspec.structs.replace(model, key_id=old.key_id), old)


def key_ids_of(model: Model) -> list[int]:
    """The stored keys that it is asked with."""
    ids = (model.key_id, *(endpoint.key_id for endpoint in model.endpoints))
    return [key_id for key_id in ids if key_id is not None]


def _are_valid_limits(limits: ProcessLimits) -> bool:
    least = {"memory_mb": 8, "open_files": 16, "nice": 0}
    most = {"memory_mb": 2**40, "open_files": 2**20, "nice": 19}
    given = {name: value for name in least if (value := getattr(limits, name)) is not None}
    return all(least[name] <= value <= most[name] for name, value in given.items())


def accepts_any_json(model: Model) -> bool:
    """Whether it is asked with the payload as it is; all others speak as OpenAI's API does."""
    return model.kind == "http" or (model.kind == "subprocess" and not model.serve)


def with_changes(model: Model, changes: Mapping[str, Any]) -> Model:
    """`model` with these; `timeouts` and `limits` are mappings of what is given of them, and all else of them stays."""
    parts = {
        name: msgspec.structs.replace(getattr(model, name), **changes[name])
        for name in changes.keys() & {"timeouts", "limits"}
    }
    return msgspec.structs.replace(model, **{**changes, **parts})


def version_of(model: Model) -> str:
    """A name for what the model is now: whatever is changed about it gives it another one."""
    return fingerprint(msgspec.json.encode(model))[:16]


def upstream_name(model: Model, requested_name: str) -> str:
    """What the upstream calls the model that was asked for as `asked`."""
    return model.upstream_model or requested_name
