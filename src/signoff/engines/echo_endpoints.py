"""What an echo answers where it is asked for no completion: responses, embeddings, moderations, ranks."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from math import hypot
from typing import Annotated, Literal, TypeVar

import msgspec

from signoff.core import response
from signoff.core.convert import response_event
from signoff.core.response import JsonObject
from signoff.core.tokens import Usage
from signoff.errors import BadRequest

T = TypeVar("T")
MAX_INPUTS = 2048
_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\s*\S+|\s+")
_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


class EchoResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of `/v1/responses`, one event a word when it is streamed."""

    digest: str
    model: str
    text: str
    usage: Usage

    def whole(self) -> bytes:
        return msgspec.json.encode(self._told())

    def events(self) -> Iterator[bytes]:
        for event in response.events_of(self._told(), lambda text: (piece[0] for piece in _PIECE.finditer(text))):
            yield response_event(event).raw

    def _told(self) -> JsonObject:
        usage = {
            "input_tokens": self.usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.usage.total_tokens,
        }
        return response.response_from_text(self.text, self.digest, self.model) | {"usage": usage}


class _Embed(msgspec.Struct):
    input: str | list[str | int | list[int]]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    encoding_format: Literal["float", "base64"] = "float"


def embeddings(body: bytes, model: str) -> bytes:
    """A vector of length 1 for each input, out of its digest: equal inputs have equal ones. Raises BadRequest."""
    asked = _decoded(body, _Embed)
    inputs = _inputs(asked.input)
    data: list[JsonObject] = [
        {"object": "embedding", "index": index, "embedding": _written(_vector(each, asked.dimensions), asked)}
        for index, each in enumerate(inputs)
    ]
    tokens = sum(len(_WORD.findall(each)) if isinstance(each, str) else len(each) for each in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _inputs(told: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Texts, or lists of tokens; one list of numbers is one input."""
    if isinstance(told, str):
        return [told]
    tokens = [each for each in told if isinstance(each, int)]
    if tokens and len(tokens) == len(told):
        return [tokens]
    if tokens or len(told) > MAX_INPUTS:
        raise BadRequest(f"An echo takes a text, tokens, or at most {MAX_INPUTS} of one of them.")
    return [each for each in told if not isinstance(each, int)]


def _vector(told: str | list[int], dimensions: int) -> tuple[float, ...]:
    numbers = struct.unpack(f"<{dimensions}i", hashlib.shake_256(msgspec.json.encode(told)).digest(4 * dimensions))
    length = hypot(*numbers) or 1.0
    return struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(number / length for number in numbers)))


def _written(vector: tuple[float, ...], asked: _Embed) -> object:
    if asked.encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class _Moderate(msgspec.Struct):
    input: str | list[str | JsonObject]


def moderations(body: bytes, model: str) -> bytes:
    """Nothing is ever flagged. Raises BadRequest."""
    told = _decoded(body, _Moderate).input
    count = len(told) if isinstance(told, list) and told and isinstance(told[0], str) else 1
    if count > MAX_INPUTS:
        raise BadRequest(f"An echo takes at most {MAX_INPUTS} inputs at a time.")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    name = hashlib.sha256(body).hexdigest()[:16]
    return msgspec.json.encode({"id": f"modr-{name}", "model": model, "results": [result] * count})


class _Document(msgspec.Struct):
    text: str


class _Rank(msgspec.Struct):
    query: str
    documents: Annotated[list[str | _Document], msgspec.Meta(max_length=MAX_INPUTS)]
    top_n: Annotated[int, msgspec.Meta(ge=0)] | None = None


def ranks(body: bytes, model: str) -> bytes:
    """The documents with the most of the query's words first (as Jina's and Cohere's servers tell it).

    Raises BadRequest.
    """
    asked = _decoded(body, _Rank)
    wanted = set(_WORD.findall(asked.query.lower()))
    texts = [each if isinstance(each, str) else each.text for each in asked.documents]
    scores = [len(wanted & set(_WORD.findall(text.lower()))) / (len(wanted) or 1) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: asked.top_n]
    results = [
        {"index": index, "relevance_score": scores[index], "document": {"text": texts[index]}} for index in order
    ]
    name = hashlib.sha256(body).hexdigest()[:16]
    return msgspec.json.encode({"id": f"rerank-{name}", "model": model, "results": results})


def _decoded(body: bytes, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=wanted)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This cannot be asked: {error}") from None
