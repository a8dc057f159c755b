"""Tokens: as the upstream counted them, else about how many there were."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import cast

import msgspec

from signoff.core.parse_cost import is_cheap_to_parse

# About what a token stands for in the texts that models read.
BYTES_PER_TOKEN = 4
NO_TEXT = frozenset({"role", "type", "input_audio"})
_NO_TEXT = re.compile(rb'"(?:data:|data"\s*:\s*")[^"]{1000,}')
NOT_SAID = NO_TEXT | {"id", "call_id", "index", "status", "finish_reason", "logprobs", "audio", "result"}


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the upstream counted them; where it did not, see `counted`.

    `cached_tokens` are those of the prompt that it took from a cache of its own.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _ReportedUsage(msgspec.Struct):
    """Under either of the names that endpoints have for them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _ReportedUsage | None = None


_NOTHING = msgspec.Raw(b"null")


class _RequestTexts(msgspec.Struct):
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING


class _AnswerTexts(msgspec.Struct):
    choices: msgspec.Raw = _NOTHING
    output: msgspec.Raw = _NOTHING


def parse_usage(body: bytes) -> Usage | None:
    """What an answer tells; its own tokens are counted where it tells the request's alone.

    Raises ValueError, or RecursionError, when it is not JSON.
    """
    try:
        told = msgspec.json.decode(body, type=_Answer).usage
    except msgspec.ValidationError:
        msgspec.json.decode(body, type=msgspec.Raw)  # which may be no object, but must be JSON
        return None
    if told is None:
        return None
    asked = told.prompt_tokens or told.input_tokens or 0
    said = told.completion_tokens or told.output_tokens or 0
    total = told.total_tokens or 0
    if not (asked or said or total):
        return None
    if not said:
        said = max(0, min(total, total - asked)) or count_answer_tokens(body)
    details = told.prompt_tokens_details or told.input_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=total, cached_tokens=cached)


def count_answer_tokens(answer: bytes) -> int:
    """About how many tokens a completion or a response has, by the size of its texts; of all else, none."""
    return _tokens(answer, _AnswerTexts, NOT_SAID)


def estimate_usage(request_body: bytes, pieces: int) -> Usage:
    """About how many tokens a stream took that does not say: one a piece; the request's texts count by their size."""
    prompt = _tokens(request_body, _RequestTexts, NO_TEXT)
    return Usage(prompt_tokens=prompt, completion_tokens=pieces, total_tokens=prompt + pieces)


def _tokens(body: bytes, members: type[msgspec.Struct], aside: Container[str]) -> int:
    """By the size of the texts in those `members`, without what stands under the names `aside`."""
    try:
        found: tuple[msgspec.Raw, ...] = msgspec.structs.astuple(msgspec.json.decode(body, type=members))
        size = sum(_size(bytes(raw), aside) for raw in found if raw is not _NOTHING)
    except (ValueError, RecursionError):
        return 0
    return -(-size // BYTES_PER_TOKEN)


def _size(raw: bytes, aside: Container[str]) -> int:
    """How many bytes of text there are in `raw`; pictures and sounds, which are no text, are left out."""
    if not is_cheap_to_parse(raw):
        return len(_NO_TEXT.sub(b"", raw))
    waiting, size = [msgspec.json.decode(raw)], 0
    while waiting:
        match waiting.pop():
            case str() as text if not text.startswith("data:"):
                size += len(text.encode())
            case list() as items:  # pyright: ignore[reportUnknownVariableType]
                waiting.extend(cast("list[object]", items))
            case dict() as members:  # pyright: ignore[reportUnknownVariableType]
                told = cast("dict[str, object]", members)
                waiting.extend(each for name, each in told.items() if name not in aside)
            case _:
                pass
    return size
