"""Tokens: as the upstream counted them, else about how many there were."""

from __future__ import annotations

from typing import Any, cast

import msgspec

# About what a token stands for in the texts that models read.
BYTES_A_TOKEN = 4
NO_TEXT = frozenset({"role", "type", "input_audio"})


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the upstream counted them; where it did not, see `counted`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Told(msgspec.Struct):
    """Under either of the names that endpoints have for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


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
    return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=told.total_tokens)


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
