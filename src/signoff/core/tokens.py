"""Tokens of an answer, and estimates of them. `core.dialects.reported_usage` reads what upstreams report."""

import re
from collections.abc import Container
from typing import cast

import msgspec

from signoff.core.parse_cost import is_cheap_to_parse

# Average length of a token in the texts that models read.
BYTES_PER_TOKEN = 4
# Members of a request without text, and of an answer without generated text.
NON_TEXT = frozenset({"role", "type", "input_audio"})
NON_OUTPUT = NON_TEXT | {"id", "call_id", "index", "status", "finish_reason", "logprobs", "audio", "result"}
# An image or audio in base64, as a `data:` URL or a member `data`.
_EMBEDDED_DATA = re.compile(rb'"(?:data:|data"\s*:\s*")[^"]{1000,}')


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer, as the upstream reported them or as `estimate_usage` estimates them."""

    prompt_tokens: int = 0
    """Tokens of the request, cached ones included."""
    completion_tokens: int = 0
    """Tokens of the answer, reasoning included."""
    total_tokens: int = 0
    """Sum that the upstream reported; it can differ from that of the parts."""
    cached_tokens: int = 0
    """Number of prompt tokens that the upstream read from its own cache."""


_NOTHING = msgspec.Raw(b"null")


class _RequestTexts(msgspec.Struct):
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING


class _AnswerTexts(msgspec.Struct):
    choices: msgspec.Raw = _NOTHING
    output: msgspec.Raw = _NOTHING
    content: msgspec.Raw = _NOTHING


def count_answer_tokens(answer: bytes) -> int:
    """Estimate the tokens of a completion, a response or a message by the size of its texts; 0 for any other answer."""
    return _tokens(answer, _AnswerTexts, NON_OUTPUT)


def estimate_usage(request_body: bytes, pieces: int) -> Usage:
    """Estimate the usage of a stream of `pieces` content events: a token each, and the request by its texts."""
    prompt = _tokens(request_body, _RequestTexts, NON_TEXT)
    return Usage(prompt_tokens=prompt, completion_tokens=pieces, total_tokens=prompt + pieces)


def _tokens(body: bytes, members: type[msgspec.Struct], excluded: Container[str]) -> int:
    """Estimate the tokens of the texts in `members`, without the values of the member names in `excluded`."""
    try:
        values: tuple[msgspec.Raw, ...] = msgspec.structs.astuple(msgspec.json.decode(body, type=members))
        size = sum(_size(bytes(raw), excluded) for raw in values if raw is not _NOTHING)
    except (ValueError, RecursionError):
        return 0
    return -(-size // BYTES_PER_TOKEN)


def _size(raw: bytes, excluded: Container[str]) -> int:
    """Return the bytes of text in `raw`, without images and audio."""
    if not is_cheap_to_parse(raw):
        return len(_EMBEDDED_DATA.sub(b"", raw))
    waiting, size = [msgspec.json.decode(raw)], 0
    while waiting:
        match waiting.pop():
            case str() as text if not text.startswith("data:"):
                size += len(text.encode())
            case list() as items:  # pyright: ignore[reportUnknownVariableType]
                waiting.extend(cast("list[object]", items))
            case dict() as members:  # pyright: ignore[reportUnknownVariableType]
                values = cast("dict[str, object]", members)
                waiting.extend(each for name, each in values.items() if name not in excluded)
            case _:
                pass
    return size
