"""Models: their configuration and its checks, their endpoints and keys, and an index of models by name."""

import re
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Literal

import msgspec

from signoff.core.api_paths import USER_ROUTES
from signoff.core.cache import CacheRule
from signoff.core.fingerprint import fingerprint
from signoff.core.headers import header_names_fault
from signoff.core.reviews.policy import Review

# A plug-in can add kinds, so this is not a Literal; the registry of the engines has all of them.
ModelKind = str
HTTP_KINDS: tuple[ModelKind, ...] = ("openai", "http")
PERSON: ModelKind = "person"  # answers on the review desk; no engine is asked
_HTTP_SCHEMES = ("http://", "https://")
# Kinds that a caller's own upstream key is sent to.
KINDS_WITH_KEYS: tuple[ModelKind, ...] = ("openai", "http", "anyllm")
MAX_NAME_LENGTH = 255
# Identity of an endpoint within its model: its URL, and the name of the model at its upstream.
EndpointName = tuple[str, str | None]
Balance = Literal["least-load", "prefix-hash"]
BALANCES: tuple[Balance, ...] = ("least-load", "prefix-hash")
MAX_ENDPOINTS = 64
MAX_ROUTES = 32
MAX_FALLBACKS = 8
MAX_WAITING = 100_000
MAX_PARALLEL = 1_000_000
MAX_ATTEMPTS = 1_000_000
_SEGMENT = re.compile(r"\*|[A-Za-z0-9_-]{1,64}")
# Separates the name of a model from the number of its replica. A registered name has no no-break space.
_REPLICA_MARK = "\N{NO-BREAK SPACE}#"
TimeLimit = Literal["first_byte_seconds", "between_chunks_seconds", "total_seconds"]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits of one request to a model, in seconds."""

    connect_seconds: float = 5
    """Time to connect to the upstream."""
    first_byte_seconds: float = 300
    """Time from the request to the first byte of the answer."""
    between_chunks_seconds: float = 60
    """Time between two chunks of a stream."""
    total_seconds: float = 600
    """Time from the request to the end of the answer."""

    def fault(self, limit: TimeLimit) -> str:
        """Return the rest of a message that begins with the name of a model that exceeded `limit`."""
        verbs = {"first_byte_seconds": "did not start to answer within", "between_chunks_seconds": "sent nothing for"}
        return f"{verbs.get(limit, 'took more than')} {getattr(self, limit):g} s (`timeouts.{limit}`)"


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint of a model with several. None stands for the value of the model."""

    url: str
    """Base URL of the upstream."""
    upstream_model: str | None = None
    """Name of the model at this upstream."""
    key_id: int | None = None
    """Upstream key for this endpoint."""
    max_parallel: int | None = None
    """Maximum number of requests in flight from each server process."""


class ProcessLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resource limits of each process of a model. None stands for the limit of the server itself."""

    memory_mb: int | None = None
    """Memory of its own in MiB; mapped files do not count on Linux."""
    open_files: int | None = None
    """Maximum number of open files."""
    nice: int | None = None
    """Number that is added to the niceness of the process, from 0 to 19."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model, as an admin configured it."""

    name: str
    """Unique name; a name that ends in `*` stands for all with that prefix."""
    kind: ModelKind
    """Kind of engine that runs it, such as `openai`, `http`, `subprocess` or `echo`."""
    url: str | None = None
    """Base URL of the upstream; None for a model without one, or with `endpoints`."""
    upstream_model: str | None = None
    """Name of the model at its upstream; None for the name in the request."""
    key_id: int | None = None
    """Upstream key that requests are sent with; None for none."""
    command: tuple[str, ...] = ()
    """Program and arguments of a subprocess model."""
    serve: bool = False
    """True if the program serves HTTP on a given port, False if it reads and writes JSON lines."""
    idle_seconds: float = 300
    """Time without requests after which the program is stopped."""
    start_seconds: float = 60
    """Time for the program to become ready."""
    timeouts: Timeouts = Timeouts()
    """Time limits of one request."""
    limits: ProcessLimits = ProcessLimits()
    """Resource limits of each process of the program."""
    attempts: int | None = None
    """Maximum number of attempts of a job; None for the setting `now_attempts` (a caller waits) or `later_attempts`."""
    review: Review | None = None
    """Review rule of its answers, whichever API or topic a request came by; None for the rule of that API or topic."""
    coalesce: bool | None = None
    """True if identical requests in flight share one upstream call; None for the server's setting."""
    default: bool = False
    """True for the model of requests that name none; the catalog has one such model at most."""
    cache: CacheRule | None = None
    """Cache rule of its answers; None for the rule of the token, else that of the request."""
    endpoints: tuple[EndpointConfig, ...] = ()
    """Endpoints that share the load; empty for the single one at `url`."""
    replicas: int = 1
    """Number of processes of a subprocess model that share the load."""
    balance: Balance = "least-load"
    """Choice among endpoints: the least loaded one, or one by a hash of the conversation (for prompt caches)."""
    max_parallel: int | None = None
    """Maximum number of requests in flight at each endpoint from each server process; None for no maximum."""
    max_waiting: int = 1000
    """Maximum number of further requests that wait for a free endpoint, in each server process."""
    queue_seconds: float = 60
    """Longest time that a request waits for a free endpoint."""
    fallbacks: tuple[str, ...] = ()
    """Names of models that are tried, in order, if no endpoint answers."""
    pass_headers: tuple[str, ...] | None = None
    """Names of the caller's headers that pass on to the upstream; None for the server's setting."""
    review_queue: str | None = None
    """Review queue of the requests to a person; None for the queue of all reviewers."""
    routes: tuple[str, ...] = ()
    """First segments of routes below /v1 that users may call besides `api_paths.USER_ROUTES`; `*` for all routes."""

    def allows_users(self, first_segment: str) -> bool:
        """Return True if users may call the routes below /v1 that begin with `first_segment`."""
        return first_segment in USER_ROUTES or first_segment in self.routes or "*" in self.routes


class ModelIndex:
    """An index of models by the names that they answer to."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {model.name: model for model in self.models}
        longest_first = sorted(self.models, key=lambda model: len(model.name), reverse=True)
        self._echoes = [model for model in longest_first if model.kind == "echo"]
        self._prefixes = [model for model in longest_first if model.name.endswith("*")]
        self._versions: dict[str, str] = {}

    def find(self, name: str) -> Model | None:
        """Return the model for `name`, or None.

        It is an exact match, else an echo model with options (`echo/delay=1`), else the longest prefix. A name that is
        not printable matches exactly or not at all.
        """
        if name in self._by_name:
            return self._by_name[name]
        if not name.isprintable():
            return None
        echo = next((model for model in self._echoes if name.startswith(f"{model.name}/")), None)
        return echo or next((model for model in self._prefixes if name.startswith(model.name[:-1])), None)

    def has_exact(self, name: str) -> bool:
        """Return True if `name` is that of a model, or of an echo model with options, such as `echo/delay=1`."""
        return name in self._by_name or (
            name.isprintable() and any(name.startswith(f"{model.name}/") for model in self._echoes)
        )

    def may_reach_person(self, model: Model) -> bool:
        """Return True if `model` is a person, or may fall back on one."""
        waiting, visited = [model], {model.name}
        while waiting:
            each = waiting.pop()
            if each.kind == PERSON:
                return True
            for name in each.fallbacks:
                other = self.find(name)
                if other is not None and other.name not in visited:
                    visited.add(other.name)
                    waiting.append(other)
        return False

    def version_of(self, model: Model) -> str:
        """Return `version_of(model)`, computed once for each model of this index."""
        if self._by_name.get(model.name) is not model:
            return version_of(model)
        if model.name not in self._versions:
            self._versions[model.name] = version_of(model)
        return self._versions[model.name]

    def default(self) -> Model | None:
        """Return the model for requests that name none: the one marked as default, else `local`."""
        default = next((model for model in self.models if model.default), None)
        return default or self._by_name.get("local")


def is_name(text: str) -> bool:
    """Return True if `text` can be the name of a model."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable() and text == text.strip()


def model_fault(model: Model) -> str | None:
    """Return an error message for the first invalid value in `model`; None for a valid model."""
    return _general_fault(model) or _list_fault(model) or _kind_fault(model) or _endpoint_fault(model)


def _general_fault(model: Model) -> str | None:
    if not is_name(model.name) or "*" in model.name[:-1]:
        return f"`name` must be 1 to {MAX_NAME_LENGTH} printable characters without outer blanks; * only at its end."
    if model.default and model.name.endswith("*"):
        return "`default` needs a `name` without *; remove one of them."
    for name, value, least, most in _counts_of(model):
        if value is not None and not least <= value <= most:
            return f"`{name}` must be {least} to {most} (got {value})."
    for name, seconds in _durations_of(model).items():
        if not 0 < seconds < inf:
            return f"`{name}` must be more than 0 and finite (got {seconds})."
    return None


def _list_fault(model: Model) -> str | None:
    if len(model.fallbacks) > MAX_FALLBACKS or model.name in model.fallbacks or not all(map(is_name, model.fallbacks)):
        return f"`fallbacks` must be at most {MAX_FALLBACKS} names of other models."
    if len(model.routes) > MAX_ROUTES or not all(map(_SEGMENT.fullmatch, model.routes)):
        return f"`routes` must be at most {MAX_ROUTES} segments of paths, such as `realtime`, or `*`."
    return header_names_fault(model.pass_headers or ())


def _counts_of(model: Model) -> list[tuple[str, int | None, int, int]]:
    """Return name, value, minimum and maximum of each field that is a number of things."""
    return [
        ("attempts", model.attempts, 1, MAX_ATTEMPTS),
        ("replicas", model.replicas, 1, MAX_ENDPOINTS),
        ("max_waiting", model.max_waiting, 0, MAX_WAITING),
        ("limits.memory_mb", model.limits.memory_mb, 8, 2**40),
        ("limits.open_files", model.limits.open_files, 16, 2**20),
        ("limits.nice", model.limits.nice, 0, 19),
        *(("max_parallel", each.max_parallel, 1, MAX_PARALLEL) for each in (model, *model.endpoints)),
    ]


def _durations_of(model: Model) -> dict[str, float]:
    timeouts = {f"timeouts.{name}": seconds for name, seconds in msgspec.structs.asdict(model.timeouts).items()}
    return {name: getattr(model, name) for name in ("idle_seconds", "start_seconds", "queue_seconds")} | timeouts


def _kind_fault(model: Model) -> str | None:
    kind = model.kind
    if kind in HTTP_KINDS and not (model.endpoints or (model.url or "").startswith(_HTTP_SCHEMES)):
        return f"`url` must begin with http:// or https:// for a model of the kind {kind}."
    if kind == "anyllm" and "/" not in (model.upstream_model or model.name):
        return "`upstream_model`, or else `name`, must be PROVIDER/MODEL for a model of the kind anyllm."
    if kind == "subprocess" and (not "".join(model.command[:1]) or "\0" in "".join(model.command)):
        return "`command` must name a program, without NUL characters, for a model of the kind subprocess."
    if kind == "subprocess":
        return _queue_fault(model)
    for name, default in (("command", ()), ("serve", False), ("limits", ProcessLimits()), ("replicas", 1)):
        if getattr(model, name) != default:
            return f"`{name}` is for models of the kind subprocess; remove it (this one is of the kind {kind})."
    return _person_fault(model) if kind == PERSON else _queue_fault(model)


def _queue_fault(model: Model) -> str | None:
    if model.review_queue is None:
        return None
    return f"`review_queue` is for models of the kind person; remove it (this one is of the kind {model.kind})."


def _person_fault(model: Model) -> str | None:
    if model.review == "never":
        return "`review` must not be never for a model of the kind person: its answers are written on the desk."
    for name in ("url", "upstream_model", "fallbacks", "max_parallel"):
        if getattr(model, name):
            return f"`{name}` has no effect on a model of the kind person; remove it."
    if model.review_queue is not None and not is_name(model.review_queue):
        return f"`review_queue` must be 1 to {MAX_NAME_LENGTH} printable characters without outer blanks."
    return None


def _endpoint_fault(model: Model) -> str | None:
    endpoints = [(each.url, each.upstream_model) for each in model.endpoints]
    if endpoints and model.kind not in HTTP_KINDS:
        return f"`endpoints` is for models of the kinds openai and http; remove it (got the kind {model.kind})."
    if endpoints and model.url:
        return "`url` and `endpoints` exclude each other; remove one of them."
    if not all(url.startswith(_HTTP_SCHEMES) for url, _ in endpoints):
        return "`endpoints`: each `url` must begin with http:// or https://."
    if len(set(endpoints)) < len(endpoints):
        return "`endpoints` must differ in `url` or `upstream_model`; remove the duplicate."
    if len(endpoints) > MAX_ENDPOINTS:
        return f"`endpoints` must be at most {MAX_ENDPOINTS} (got {len(endpoints)})."
    return None


def needs_no_pool(model: Model) -> bool:
    """Return True if `model` can be called directly: no `endpoints`, `max_parallel` or fallbacks, and one replica."""
    return not (model.endpoints or model.fallbacks or model.max_parallel is not None or model.replicas > 1)


def endpoints_of(model: Model) -> tuple[Model, ...]:
    """Return one model for each endpoint or replica of `model`; replicas after the first have a name of their own."""
    if model.endpoints:
        return tuple(_at_endpoint(model, endpoint) for endpoint in model.endpoints)
    names = (f"{model.name}{_REPLICA_MARK}{number}" for number in range(2, model.replicas + 1))
    return (model, *(msgspec.structs.replace(model, name=name) for name in names))


def _at_endpoint(model: Model, endpoint: EndpointConfig) -> Model:
    return msgspec.structs.replace(
        model,
        endpoints=(),
        url=endpoint.url,
        upstream_model=endpoint.upstream_model or model.upstream_model,
        key_id=model.key_id if endpoint.key_id is None else endpoint.key_id,
        max_parallel=endpoint.max_parallel or model.max_parallel,
    )


def registered_name(name: str) -> str:
    """Return the name of the model that `name` is a replica of, or `name` itself."""
    return name.partition(_REPLICA_MARK)[0]


def with_new_keys(
    model: Model, add: Callable[[bytes], int], own: bytes | None, at: Mapping[EndpointName, bytes]
) -> Model:
    """Return `model` with new keys.

    Args:
        model: Model to change.
        add: Function that stores an encrypted key and returns its id.
        own: Encrypted key of the model itself; None to leave it as it is.
        at: Encrypted keys of its endpoints; others stay as they are.
    """
    endpoints = [
        msgspec.structs.replace(each, key_id=add(at[each.url, each.upstream_model]))
        if (each.url, each.upstream_model) in at
        else each
        for each in model.endpoints
    ]
    key_id = model.key_id if own is None else add(own)
    return msgspec.structs.replace(model, key_id=key_id, endpoints=tuple(endpoints))


def without_keys(model: Model) -> Model:
    """Return `model` without keys."""
    endpoints = [msgspec.structs.replace(each, key_id=None) for each in model.endpoints]
    return msgspec.structs.replace(model, key_id=None, endpoints=tuple(endpoints))


def with_existing_keys(model: Model, old: Model) -> Model:
    """Return `model` with the keys of `old`, which it replaces, so that a registration without keys keeps them.

    The key of the model is always that of `old`. An endpoint without a key gets that of the old endpoint with its URL
    and upstream model, else of one with its URL.
    """
    by_name = {(each.url, each.upstream_model): each.key_id for each in old.endpoints}
    by_url = {each.url: each.key_id for each in old.endpoints}
    endpoints = [
        msgspec.structs.replace(
            each, key_id=each.key_id or by_name.get((each.url, each.upstream_model), by_url.get(each.url))
        )
        for each in model.endpoints
    ]
    return msgspec.structs.replace(model, key_id=old.key_id, endpoints=tuple(endpoints))


def key_ids_of(model: Model) -> list[int]:
    """Return the ids of the keys of `model` and its endpoints."""
    ids = (model.key_id, *(endpoint.key_id for endpoint in model.endpoints))
    return [key_id for key_id in ids if key_id is not None]


def accepts_any_json(model: Model) -> bool:
    """Return True if `model` takes any JSON as it is; all other models take requests of OpenAI's API."""
    return model.kind == "http" or (model.kind == "subprocess" and not model.serve)


def with_changes(model: Model, changes: Mapping[str, Any]) -> Model:
    """Return `model` with `changes`; `timeouts` and `limits` are mappings of the members that change."""
    parts = {
        name: msgspec.structs.replace(getattr(model, name), **changes[name])
        for name in changes.keys() & {"timeouts", "limits"}
    }
    return msgspec.structs.replace(model, **{**changes, **parts})


def version_of(model: Model) -> str:
    """Return a hash of the whole configuration of `model`."""
    return fingerprint(msgspec.json.encode(model))[:16]


def upstream_name(model: Model, requested_name: str) -> str:
    """Return the name that the upstream knows the model by, if it was requested as `requested_name`."""
    return model.upstream_model or requested_name
