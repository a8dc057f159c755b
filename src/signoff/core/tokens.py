"""Tokens: as the upstream counted them, else about how many there were."""

from __future__ import annotations

from typing import Any, cast

import msgspec

# About what a token stands for in the texts that models read.
BYTES_A_TOKEN = 4
NO_TEXT = frozenset({"role", "type", "input_audio"})


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


class _Told(msgspec.Struct):
    """Under either of the names that endpoints have for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Told | None = None


def usage_of(body: bytes) -> Usage | None:
    """What an answer tells. Raises ValueError, or RecursionError, when it is not JSON."""
    try:
        told = msgspec.json.decode(body, type=_Answer).usage
    except msgspec.ValidationError:
        msgspec.json.decode(body, type=msgspec.Raw)  # which may be no object, but must be JSON
        return None
    if told is None:
        return None
    asked = told.prompt_tokens or told.input_tokens
    said = told.completion_tokens or told.output_tokens
    details = told.prompt_tokens_details or told.input_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=told.total_tokens, cached_tokens=cached)


def counted(asked: bytes, pieces: int) -> Usage:
    """About how many tokens a stream took that does not say: one a piece; the request's texts count by their size."""
    prompt = -(-_text_bytes(asked) // BYTES_A_TOKEN)
    return Usage(prompt_tokens=prompt, completion_tokens=pieces, total_tokens=prompt + pieces)


def _text_bytes(asked: bytes) -> int:
    try:
        body = msgspec.json.decode(asked, type=dict[str, Any])
    except (ValueError, RecursionError):
        return 0
    return sum(_size(body.get(name)) for name in ("messages", "prompt", "input", "instructions", "tools"))


def _size(value: object) -> int:
    """How many bytes of text there are in `value`; pictures and sounds, which are no text, are left out."""
    waiting, size = [value], 0
    while waiting:
        match waiting.pop():
            case str() as text if not text.startswith("data:"):
                size += len(text.encode())
            case list() as items:  # pyright: ignore[reportUnknownVariableType]
                waiting.extend(cast("list[object]", items))
            case dict() as members:  # pyright: ignore[reportUnknownVariableType]
                told = cast("dict[str, object]", members)
                waiting.extend(each for name, each in told.items() if name not in NO_TEXT)
            case _:
                pass
    return size
