"""Response cache: its entries and keys, the requests it applies to, and the caller's `Cache-Control`."""

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec

from signoff.core.api_paths import CHAT, COMPLETIONS, MESSAGES, RESPONSES, STREAMED
from signoff.core.dialects import messages, response
from signoff.core.dialects.reported_usage import parse_usage
from signoff.core.fingerprint import fingerprint
from signoff.core.parse_cost import is_cheap_to_parse
from signoff.core.reviews.policy import JobPolicy
from signoff.core.tokens import Usage

CacheRule = Literal["always", "never"]
# Use of the cache by one job: the answer came from it, is stored in it once it is signed off, or does neither.
CacheState = Literal["hit", "miss", "bypass"]
# Parameters that change the form of the answer and not its content.
IGNORED_PARAMETERS = ("stream", "stream_options")
# Values of `status` in a response that has ended; other answers have no such member.
FINAL_STATUSES = {None, "completed", "incomplete"}


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A signed-off answer in the cache."""

    key: str
    """See `compute_cache_key`."""
    user_id: int
    """Owner of the job."""
    target: str
    """Name that the request was for."""
    model: str
    """Name of the model that answered."""
    path: str
    """Endpoint of the request."""
    job_id: str
    """Job whose answer it is."""
    answer: bytes
    """JSON body of the answer."""
    usage: Usage | None = None
    """Tokens that the answer took; None where they are not known."""


class CacheHit(msgspec.Struct, frozen=True):
    """An entry with its age and its remaining time to live."""

    entry: CacheEntry
    """The entry."""
    age_seconds: float
    """Time since it was stored."""
    left_seconds: float
    """Time until it expires."""


class CacheFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A selection of entries by their fields; None matches all."""

    key: str | None = None
    """Key of one entry."""
    user_id: int | None = None
    """Owner of the jobs."""
    model: str | None = None
    """Name of the model that answered."""
    target: str | None = None
    """Name that the requests were for."""


class CacheSize(msgspec.Struct, frozen=True):
    """Number of entries in the cache, and the bytes of their answers."""

    entries: int = 0
    """Number of cached answers."""
    size_bytes: int = 0
    """Bytes of these answers."""


class CacheControl(msgspec.Struct, frozen=True, kw_only=True):
    """Directives of a request's `Cache-Control` (RFC 9111, section 5.2.1)."""

    no_store: bool = False
    """True to neither look the answer up nor store it."""
    no_cache: bool = False
    """True to store the answer without looking it up."""
    max_age_seconds: float | None = None
    """Greatest age of an acceptable entry; None for any."""


class Sampling(msgspec.Struct, frozen=True):
    """The members of a request that make its answer random or repeatable, as raw JSON."""

    temperature: msgspec.Raw = msgspec.Raw(b"null")
    """Randomness of the choice of tokens; null for the model's own."""
    seed: msgspec.Raw = msgspec.Raw(b"null")
    """Start of the random numbers; null for a random one."""

    @property
    def is_repeatable(self) -> bool:
        """True if the caller asks for the same answer each time: with a seed, or a temperature of 0."""
        return bytes(self.seed) != b"null" or _is_zero(bytes(self.temperature))


def parse_cache_control(headers: Iterable[str]) -> CacheControl:
    """Parse all `Cache-Control` headers of a request; a `max-age` that is not a number counts as 0."""
    words = [word.strip().lower().partition("=") for header in headers for word in header.split(",")]
    names = {name.strip() for name, _, _ in words}
    ages = [value.strip().strip('"') for name, _, value in words if name.strip() == "max-age"]
    seconds = [float(age) if re.fullmatch(r"\d{1,12}", age) else 0.0 for age in ages]
    return CacheControl(
        no_store="no-store" in names, no_cache="no-cache" in names, max_age_seconds=min(seconds, default=None)
    )


def is_cacheable(*rules: CacheRule | None, sampling: Sampling) -> bool:
    """Return True if the cache applies: by the first of `rules` that is set, else for a repeatable request."""
    for rule in rules:
        if rule is not None:
            return rule == "always"
    return sampling.is_repeatable


def compute_cache_key(  # noqa: PLR0913 -- the parts of the key
    *, scope: str, path: str, target: str, versions: str, policy: JobPolicy, body: bytes, headers: bytes = b""
) -> str | None:
    """Return the key of the answer to `body`: `VERSIONS-DIGEST`, or None if `body` is invalid or too costly to parse.

    The digest is a `fingerprint` of all arguments.

    Args:
        scope: users who share the entry: one user, or all.
        path: path of the request.
        target: name that the request is for.
        versions: version of the model behind that name.
        policy: policy under which the answer is signed off.
        body: parameters of the request, see `canonical_parameters`.
        headers: headers of the request that could change the answer, see `headers.comparable_headers`.
    """
    if not is_cheap_to_parse(body):
        return None
    try:
        parameters = canonical_parameters(body, path)
    except (ValueError, RecursionError, OverflowError):
        return None
    parts = [scope.encode(), path.encode(), target.encode(), versions.encode(), msgspec.json.encode(policy), parameters]
    digest = fingerprint(*parts, headers) if headers else fingerprint(*parts)
    return f"{versions}-{digest}"


def has_versions(key: str, versions: str) -> bool:
    """Return True if `key` was computed with `versions`."""
    return key.startswith(f"{versions}-")


def canonical_parameters(body: bytes, path: str) -> bytes:
    """Return the parameters in `body` in a canonical form.

    The order of members and the escapes of texts do not matter; numbers stay as they are written. Readers disagree
    about an object with two members of one name, so the canonical form of such a body is its own text.

    Raises:
        ValueError: `body` is not JSON.
        RecursionError: `body` is nested too deeply.
    """
    value = _decode(body)
    form = msgspec.json.encode(value, order="sorted")
    plain = msgspec.json.format(body, indent=-1)
    # No spelling is shorter than that in `form`: if both have one length, no duplicate member was dropped.
    if len(form) != len(plain) and _has_duplicate_names(body):
        return plain
    if path in STREAMED and isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if not members.keys().isdisjoint(IGNORED_PARAMETERS):
            relevant = {name: members[name] for name in members if name not in IGNORED_PARAMETERS}
            return msgspec.json.encode(relevant, order="sorted")
    return form


def is_complete(path: str, answer: bytes) -> bool:
    """Return True if `answer` can be cached: it has no `error`, and a response is not still in progress."""
    try:
        ending = msgspec.json.decode(answer, type=_Ending)
    except msgspec.ValidationError:
        return True  # a text, or a list
    except (ValueError, RecursionError):
        return False
    if bytes(ending.error) != b"null":
        return False
    return path != RESPONSES or ending.status in FINAL_STATUSES


def with_usage(path: str, answer: bytes, usage: Usage | None) -> bytes:
    """Return `answer` with `usage`, which a whole answer has even if the stream that it came from had none."""
    content = {CHAT: "choices", COMPLETIONS: "choices", RESPONSES: "output", MESSAGES: "content"}.get(path)
    if usage is None or content is None:
        return answer
    try:
        if parse_usage(answer) is not None:
            return answer
        whole = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        return answer
    if content not in whole:
        return answer
    return msgspec.json.encode(whole | {"usage": _usage_in(path, usage)})


def _usage_in(path: str, usage: Usage) -> Usage | dict[str, Any]:
    """Return `usage` with the names that it has in an answer of `path`."""
    if path == RESPONSES:
        total, cached = usage.total_tokens, usage.cached_tokens
        return response.usage_of(usage.prompt_tokens, usage.completion_tokens, total=total, cached=cached)
    return messages.usage_of(usage) if path == MESSAGES else usage


class _Ending(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"null")
    status: Any = None


_decode = msgspec.json.Decoder(float_hook=msgspec.Raw).decode


def _is_zero(number: bytes) -> bool:
    try:
        return number != b"null" and float(number) == 0
    except ValueError:
        return False


def _has_duplicate_names(body: bytes) -> bool:
    try:
        json.loads(body, object_pairs_hook=_reject_duplicates, parse_int=str, parse_float=str)
    except _DuplicateNameError:
        return True
    return False


class _DuplicateNameError(Exception):
    """An object has two members of one name."""


def _reject_duplicates(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) < len(members):
        raise _DuplicateNameError
