"""Which endpoint of a model is asked next, and how long one that failed rests: pure rules."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec
import xxhash

from signoff.core.retry import Backoff, wait_seconds
from signoff.errors import (
    ModelAnswered,
    ModelBusy,
    ModelCrashed,
    ModelDown,
    ModelFailed,
    ModelUnreachable,
    SignoffError,
)

# How much more than its share an endpoint may carry before its conversations go elsewhere.
LOAD_FACTOR = 1.25
COOLDOWN = Backoff(first_seconds=0.5, ceiling_seconds=30)
MAX_COOLDOWN_SECONDS = 300.0
# One request can bring a model to a failure of its own; that many in a row tell that it is not the requests.
SOFT_FAILURES = 3
# Of a text nobody can tell where a conversation's next turn begins.
PREFIX_BYTES = 1024


def least_loaded(loads: Sequence[int | None], turn: int) -> int | None:
    """The place of the smallest load, from `turn` on where several are; None stands for one that cannot be asked."""
    count = len(loads)
    best: int | None = None
    for step in range(count):
        place = (turn + step) % count
        load = loads[place]
        if load is not None and (best is None or load < (loads[best] or 0)):
            best = place
    return best


def bounded_load(total: int, count: int) -> int:
    """How many of `total` loads and one more an endpoint may carry, where `count` share them."""
    return ceil(LOAD_FACTOR * (total + 1) / max(count, 1))


def choose_by_hash(key: int, names: Sequence[int], loads: Sequence[int | None], most: int) -> int | None:
    """The place that `key` belongs to, or the next one of its own order while that carries more than its share.

    Each key has an order of its own in which it likes the places, so when one leaves, its keys alone move, to all the
    others evenly (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). A place is full
    with `most` loads (`most_of`: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016).
    """
    free = [place for place, load in enumerate(loads) if load is not None and load < most]
    if not free:
        return least_loaded(loads, 0)
    mark = key.to_bytes(8, "big")
    return max(free, key=lambda place: xxhash.xxh3_64_intdigest(mark, seed=names[place]))


def endpoint_key(name: str) -> int:
    """What `nearest` knows an endpoint by."""
    return xxhash.xxh3_64_intdigest(name.encode(errors="surrogatepass"))


class _Message(msgspec.Struct):
    role: str = "user"
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Prompt(msgspec.Struct):
    prompt_cache_key: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    messages: list[_Message] | None = None
    input: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")


def prefix_key(adapter: str, body: bytes) -> int:
    """One number for all turns of a conversation: of the adapter, the system's words, the tools and the first question.

    A caller's `prompt_cache_key` stands for all that. Of a bare text the first PREFIX_BYTES count, of other JSON all.
    """
    whole = xxhash.xxh3_64(adapter.encode(errors="surrogatepass"))
    for part in _parts(body):
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.intdigest()


def _parts(body: bytes) -> list[bytes]:
    try:
        told = msgspec.json.decode(body, type=_Prompt)
        if told.prompt_cache_key is not None:
            return [told.prompt_cache_key.encode(errors="surrogatepass")]
        messages = told.messages
        if messages is None and bytes(told.input).startswith(b"["):
            messages = msgspec.json.decode(told.input, type=list[_Message])
    except (ValueError, RecursionError):
        return [body]
    text = bytes(told.input) or bytes(told.prompt)
    if messages is not None:
        begun = [part for message in _opening(messages) for part in (message.role.encode(), bytes(message.content))]
    elif text:
        begun = [b"user", text] if bytes(told.input) else [text[:PREFIX_BYTES]]
    else:
        return [body]
    return [bytes(told.tools), bytes(told.instructions), *begun]


def _opening(messages: Sequence[_Message]) -> Sequence[_Message]:
    """Up to the first question: what comes after it grows with every turn."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    return messages[: first + 1]


def may_succeed_elsewhere(error: SignoffError) -> bool:
    """Whether another endpoint, or another model, may do better: not with a request that is at fault itself."""
    if isinstance(error, ModelAnswered):
        return error.status in {408, 429} or (error.status >= 500 and error.status != 501)
    # Whoever waits for a process that ended is told: it may have been their request.
    return error.retryable and not isinstance(error, ModelCrashed)


def is_hard_failure(error: SignoffError) -> bool:
    """Whether the endpoint rests at once: it cannot be reached, or said for how long it wants to be left alone."""
    if isinstance(error, ModelAnswered):
        return error.retry_after_seconds is not None and error.status in {429, 503}
    return isinstance(error, ModelUnreachable)


def is_soft_failure(error: SignoffError) -> bool:
    """Whether it rests after several of these in a row."""
    if isinstance(error, ModelAnswered):
        return error.status >= 500 and error.status != 501
    return (
        isinstance(error, ModelFailed) and may_succeed_elsewhere(error) and not isinstance(error, ModelBusy | ModelDown)
    )


def cooldown_seconds(error: SignoffError, failures: int) -> float:
    """How long an endpoint rests after that many failures in a row; what it asked for itself is a floor."""
    asked = error.retry_after_seconds
    return min(wait_seconds(COOLDOWN, failures, 1, asked), MAX_COOLDOWN_SECONDS)
