"""Load balancing: the choice of an endpoint for a request, and the cooldown of endpoints that failed."""

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

# An endpoint with more than this times its share of the load passes further conversations on.
LOAD_FACTOR = 1.25
COOLDOWN = Backoff(first_seconds=0.5, ceiling_seconds=30)
MAX_COOLDOWN_SECONDS = 300.0
LASTING_COOLDOWN_SECONDS = 30.0
# Statuses of an endpoint that does not have the model or the route, or may not serve it to this server.
REFUSAL_STATUSES = {403, 404, 405, 410, 421, 451, 501}
# Statuses of an endpoint with which another endpoint may still answer the request, besides those from 500 on.
ELSEWHERE_STATUSES = REFUSAL_STATUSES | {408, 425, 429}
# Codes with which servers say that they have no such model, or no longer. (Azure: no such deployment.)
UNKNOWN_MODEL_CODES = frozenset(
    {"model_not_found", "deploymentnotfound", "unknown_model", "model_decommissioned", "model_not_available"}
)
# A single request can cause a failure; after this many in a row the endpoint is at fault.
SOFT_FAILURES = 3
# A bare text does not show where the next turn of a conversation begins, so only its start counts.
PREFIX_BYTES = 1024


def least_loaded(loads: Sequence[int | None], turn: int) -> int | None:
    """Return the index of the smallest load, searching from index `turn` on; None if no endpoint is available.

    Args:
        loads: requests in flight at each endpoint; None for an endpoint that is not available.
        turn: any number; it rotates among endpoints with equal loads.
    """
    count = len(loads)
    best: int | None = None
    for step in range(count):
        index = (turn + step) % count
        load = loads[index]
        if load is not None and (best is None or load < (loads[best] or 0)):
            best = index
    return best


def bounded_load(total: int, count: int) -> int:
    """Return the maximum load of one of `count` endpoints that share `total` requests and one more."""
    return ceil(LOAD_FACTOR * (total + 1) / max(count, 1))


def choose_by_hash(key: int, endpoint_keys: Sequence[int], loads: Sequence[int | None], most: int) -> int | None:
    """Return the index of the endpoint for `key`: the first one in the key's own order with a load below `most`.

    Each key orders the endpoints by a hash, so when one leaves, only its keys move, evenly to all the others (Thaler
    and Ravishankar, "Using name-based mappings to increase hit rates", 1998). If all are full, the least loaded one is
    chosen; None if no endpoint is available.

    Args:
        key: see `prefix_key`.
        endpoint_keys: `endpoint_key` of each endpoint.
        loads: requests in flight at each endpoint; None for an endpoint that is not available.
        most: see `bounded_load` (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016).
    """
    available = [index for index, load in enumerate(loads) if load is not None and load < most]
    if not available:
        return least_loaded(loads, 0)
    key_bytes = key.to_bytes(8, "big")
    return max(available, key=lambda index: xxhash.xxh3_64_intdigest(key_bytes, seed=endpoint_keys[index]))


def endpoint_key(name: str) -> int:
    """Return the number that `choose_by_hash` identifies the endpoint `name` by."""
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
    """Return a 64-bit number that is the same for all turns of a conversation.

    It is a hash of the adapter, the system messages, the tools and the first question, or of the adapter and the
    caller's `prompt_cache_key` if there is one. Of a bare text the first PREFIX_BYTES count, of other JSON all bytes.
    """
    digest = xxhash.xxh3_64(adapter.encode(errors="surrogatepass"))
    for part in _prefix_parts(body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.intdigest()


def _prefix_parts(body: bytes) -> list[bytes]:
    try:
        request = msgspec.json.decode(body, type=_Prompt)
        if request.prompt_cache_key is not None:
            return [request.prompt_cache_key.encode(errors="surrogatepass")]
        messages = request.messages
        if messages is None and bytes(request.input).startswith(b"["):
            messages = msgspec.json.decode(request.input, type=list[_Message])
    except (ValueError, RecursionError):
        return [body]
    text = bytes(request.input) or bytes(request.prompt)
    if messages is not None:
        start = [part for message in _opening(messages) for part in (message.role.encode(), bytes(message.content))]
    elif text:
        start = [b"user", text] if bytes(request.input) else [text[:PREFIX_BYTES]]
    else:
        return [body]
    return [bytes(request.tools), bytes(request.instructions), *start]


def _opening(messages: Sequence[_Message]) -> Sequence[_Message]:
    """Return the messages up to the first one of the user; later ones differ from turn to turn."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    return messages[: first + 1]


def may_succeed_elsewhere(error: SignoffError) -> bool:
    """Return True if another endpoint or model may succeed, that is, unless the request itself is at fault."""
    if isinstance(error, ModelAnswered):
        is_elsewhere = error.status in ELSEWHERE_STATUSES or error.status >= 500
        return is_elsewhere or is_refusal(error) or error.is_account_fault
    # The request itself may have crashed the process, so it is not sent to another one.
    return isinstance(error, ModelUnreachable) or (error.retryable and not isinstance(error, ModelCrashed))


def is_refusal(error: SignoffError) -> bool:
    """Return True if the endpoint refused the request: it lacks the model or the route, or may not serve this server.

    The request may be at fault, too. If another endpoint answers the same request, the endpoint that refused it is.
    """
    if not isinstance(error, ModelAnswered):
        return False
    return error.status in REFUSAL_STATUSES or not error.codes.isdisjoint(UNKNOWN_MODEL_CODES)


def is_hard_failure(error: SignoffError) -> bool:
    """Return True if the endpoint cools down at once: it is unreachable, told to wait, or has a key without credit."""
    if is_refusal(error):
        return False
    if isinstance(error, ModelAnswered):
        return error.is_account_fault or (error.retry_after_seconds is not None and error.status in {429, 503})
    return isinstance(error, ModelUnreachable)


def is_soft_failure(error: SignoffError) -> bool:
    """Return True if the endpoint cools down after SOFT_FAILURES such errors in a row."""
    if isinstance(error, ModelAnswered):
        return is_refusal(error) or error.status >= 500
    return (
        isinstance(error, ModelFailed) and may_succeed_elsewhere(error) and not isinstance(error, ModelBusy | ModelDown)
    )


def cooldown_seconds(error: SignoffError, failures: int) -> float:
    """Return the length of the cooldown after `failures` failures in a row; the endpoint's `Retry-After` is a floor.

    It is at least LASTING_COOLDOWN_SECONDS after a failure that a person must mend, such as an account without credit.
    """
    is_lasting = is_refusal(error) or (isinstance(error, ModelAnswered) and error.is_account_fault)
    floor = max(error.retry_after_seconds or 0, LASTING_COOLDOWN_SECONDS if is_lasting else 0)
    return min(wait_seconds(COOLDOWN, failures, 1, floor), MAX_COOLDOWN_SECONDS)
