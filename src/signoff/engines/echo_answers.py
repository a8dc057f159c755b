"""Answers of an echo at the paths that are not completions: responses, embeddings, moderations, rerank."""

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from math import hypot
from typing import Annotated, Literal, TypeVar

import msgspec

from signoff.core.decode import JsonObject
from signoff.core.dialects import response
from signoff.core.tokens import Usage
from signoff.errors import BadRequest

T = TypeVar("T")
MAX_INPUTS = 2048
# A word with the space before it, so that the pieces join to the whole text.
PIECE = re.compile(r"\s*\S+|\s+")
_WORD = re.compile(r"\w+")
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
    """Answer of `/v1/responses`, streamed as one event per word."""

    digest: str
    """Suffix of the id, derived from the request."""
    model: str
    """Name that the request gave."""
    text: str
    """Text of the answer."""
    usage: Usage
    """Tokens of the input and of the answer."""

    def whole(self) -> bytes:
        """Return the response as one JSON body."""
        return msgspec.json.encode(self._object())

    def events(self) -> Iterator[bytes]:
        """Yield the response as raw server-sent events."""
        for event in response.events_of(self._object(), lambda text: (piece[0] for piece in PIECE.finditer(text))):
            yield response.response_event(event)

    def _object(self) -> JsonObject:
        usage = response.usage_of(self.usage.prompt_tokens, self.usage.completion_tokens)
        return response.response_from_text(self.text, self.digest, self.model) | {"usage": usage}


class _EmbedRequest(msgspec.Struct):
    input: str | list[str | int | list[int]]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    encoding_format: Literal["float", "base64"] = "float"


def embeddings(body: bytes, model: str) -> bytes:
    """Return a unit vector for each input, derived from its digest, so equal inputs are equal. Raises BadRequest."""
    options = _parse(body, _EmbedRequest)
    inputs = _split_inputs(options.input)
    data: list[JsonObject] = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(_vector(each, options.dimensions), options)}
        for index, each in enumerate(inputs)
    ]
    tokens = sum(len(_WORD.findall(each)) if isinstance(each, str) else len(each) for each in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _split_inputs(value: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Return the inputs, each a text or a list of tokens; a single list of numbers is one input."""
    if isinstance(value, str):
        return [value]
    tokens = [each for each in value if isinstance(each, int)]
    if tokens and len(tokens) == len(value):
        return [tokens]
    if tokens or len(value) > MAX_INPUTS:
        raise BadRequest(f"`input` must be a text, a list of tokens, or a list of at most {MAX_INPUTS} of either.")
    return [each for each in value if not isinstance(each, int)]


def _vector(text: str | list[int], dimensions: int) -> tuple[float, ...]:
    numbers = struct.unpack(f"<{dimensions}i", hashlib.shake_256(msgspec.json.encode(text)).digest(4 * dimensions))
    length = hypot(*numbers) or 1.0
    return struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(number / length for number in numbers)))


def _encode_vector(vector: tuple[float, ...], options: _EmbedRequest) -> object:
    if options.encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class _ModerationRequest(msgspec.Struct):
    input: str | list[str | JsonObject]


def moderations(body: bytes, model: str) -> bytes:
    """Return a result for each input, in which nothing is flagged. Raises BadRequest."""
    value = _parse(body, _ModerationRequest).input
    count = len(value) if isinstance(value, list) and value and isinstance(value[0], str) else 1
    if count > MAX_INPUTS:
        raise BadRequest(f"`input` must have at most {MAX_INPUTS} items (got {count}).")
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


class _RankRequest(msgspec.Struct):
    query: str
    documents: Annotated[list[str | _Document], msgspec.Meta(max_length=MAX_INPUTS)]
    top_n: Annotated[int, msgspec.Meta(ge=0)] | None = None


def ranks(body: bytes, model: str) -> bytes:
    """Return the documents sorted by how many words of the query they contain, in the format of Jina and Cohere.

    Raises BadRequest.
    """
    options = _parse(body, _RankRequest)
    query_words = set(_WORD.findall(options.query.lower()))
    texts = [each if isinstance(each, str) else each.text for each in options.documents]
    scores = [len(query_words & set(_WORD.findall(text.lower()))) / (len(query_words) or 1) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: options.top_n]
    results = [
        {"index": index, "relevance_score": scores[index], "document": {"text": texts[index]}} for index in order
    ]
    name = hashlib.sha256(body).hexdigest()[:16]
    return msgspec.json.encode({"id": f"rerank-{name}", "model": model, "results": results})


def _parse(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request body is not valid: {error}") from None
