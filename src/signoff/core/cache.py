"""Which answers are kept to be given again, under which key, and what a caller may say about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec

from signoff.core.endpoints import CHAT, COMPLETIONS, RESPONSES, STREAMED
from signoff.core.fingerprint import fingerprint
from signoff.core.parse_cost import is_cheap_to_parse
from signoff.core.policy import Policy
from signoff.core.tokens import Usage, parse_usage

CacheRule = Literal["always", "never"]
# What became of the cache for one job. Of a `miss` the answer is kept once it is signed off.
CacheState = Literal["hit", "miss", "bypass"]
# Whether the answer comes in pieces changes nothing about the answer.
ASIDE = ("stream", "stream_options")
ENDED = {None, "completed", "incomplete"}


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A signed-off answer under its key, whose it is, and which job it came from."""

    key: str
    user_id: int
    target: str
    model: str
    path: str
    job_id: str
    answer: bytes
    usage: Usage | None = None


class CacheHit(msgspec.Struct, frozen=True):
    """An entry, its age, and for how long it is kept yet."""

    entry: CacheEntry
    age_seconds: float
    left_seconds: float


class CacheFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Some entries; None stands for any."""

    key: str | None = None
    user_id: int | None = None
    model: str | None = None
    target: str | None = None


class CacheSize(msgspec.Struct, frozen=True):
    """How much is kept."""

    entries: int = 0
    size_bytes: int = 0


class CacheControl(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller's `Cache-Control` says (RFC 9111, section 5.2.1)."""

    no_store: bool = False
    no_cache: bool = False
    max_age_seconds: float | None = None


class Sampling(msgspec.Struct, frozen=True):
    """What a request says about chance."""

    temperature: msgspec.Raw = msgspec.Raw(b"null")
    seed: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def is_repeatable(self) -> bool:
        """Whether the caller asks for an answer that is the same each time."""
        return bytes(self.seed) != b"null" or _is_zero(bytes(self.temperature))


def parse_cache_control(headers: Iterable[str]) -> CacheControl:
    """What the `Cache-Control` headers say together; a `max-age` that is no number lets nothing be old."""
    words = [word.strip().lower().partition("=") for header in headers for word in header.split(",")]
    names = {name.strip() for name, _, _ in words}
    ages = [value.strip().strip('"') for name, _, value in words if name.strip() == "max-age"]
    seconds = [float(age) if re.fullmatch(r"\d{1,12}", age) else 0.0 for age in ages]
    return CacheControl(
        no_store="no-store" in names, no_cache="no-cache" in names, max_age_seconds=min(seconds, default=None)
    )


def is_cacheable(*rules: CacheRule | None, sampling: Sampling) -> bool:
    """Whether an answer is kept at all: as the first of the `rules` says; where none does, as the request itself."""
    rule = next((rule for rule in rules if rule is not None), None)
    return sampling.is_repeatable if rule is None else rule == "always"


def compute_cache_key(*, scope: str, path: str, target: str, versions: str, policy: Policy, body: bytes) -> str | None:
    """The key of the answer to `body`: `VERSIONS-DIGEST`. None for what cannot be read, or is too large to be.

    Every part counts, each with its length: SHA-256 over the scope, the endpoint, the parameters, the target and the
    versions of what is behind it, and the policy under which it is signed off.
    """
    if not is_cheap_to_parse(body):
        return None
    try:
        parameters = canonical(body, path)
    except (ValueError, RecursionError, OverflowError):
        return None
    parts = (scope, path, target, versions)
    digest = fingerprint(*(part.encode() for part in parts), msgspec.json.encode(policy), parameters)
    return f"{versions}-{digest}"


def has_versions(key: str, versions: str) -> bool:
    """Whether `key` was made with these versions."""
    return key.startswith(f"{versions}-")


def canonical(body: bytes, path: str) -> bytes:
    """The parameters in one form: the order of members aside, and how a text is escaped; numbers as they are written.

    Where an object names a member twice, what that means is its reader's affair: then the form is the text itself.
    Raises ValueError, RecursionError.
    """
    value = _decode(body)
    form = msgspec.json.encode(value, order="sorted")
    plain = msgspec.json.format(body, indent=-1)
    # Nothing is written shorter than in `form`: where both are equally long, no member got lost.
    if len(form) != len(plain) and _has_duplicate_names(body):
        return plain
    if path in STREAMED and isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if any(name in members for name in ASIDE):
            kept = {name: members[name] for name in members if name not in ASIDE}
            return msgspec.json.encode(kept, order="sorted")
    return form


def is_complete(path: str, answer: bytes) -> bool:
    """Whether this is an answer that can be given again: no error in an answer's clothes, nothing still at work."""
    try:
        told = msgspec.json.decode(answer, type=_Ending)
    except msgspec.ValidationError:
        return True  # a text, or a list
    except (ValueError, RecursionError):
        return False
    if bytes(told.error) != b"null":
        return False
    return path != RESPONSES or told.status in ENDED


def with_usage(path: str, answer: bytes, usage: Usage | None) -> bytes:
    """The answer with its tokens: a stream that did not tell them may be given again as a whole, which does."""
    if usage is None or path not in {CHAT, COMPLETIONS}:
        return answer
    try:
        if parse_usage(answer) is not None:
            return answer
        whole = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        return answer
    return msgspec.json.encode(whole | {"usage": usage}) if "choices" in whole else answer


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
    """A member has the name of another."""


def _reject_duplicates(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) < len(members):
        raise _DuplicateNameError
