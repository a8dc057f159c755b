"""Log-probabilities of the tokens of an answer: ask for them, read them, and take them out again.

Source: OpenAI's API reference: `logprobs` of chat completions and of completions, `include` of responses.
"""

from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.api_paths import CHAT, COMPLETIONS, RESPONSES
from signoff.core.decode import JsonObject, as_objects

INCLUDED = "message.output_text.logprobs"


def with_logprobs(path: str, body: bytes) -> bytes | None:
    """Return the request `body` with a member that asks for log-probabilities.

    Return None if `body` asks for them already or is malformed, or if the endpoint `path` has none.
    """
    if path not in {CHAT, COMPLETIONS, RESPONSES}:
        return None
    try:
        request = msgspec.json.decode(body, type=JsonObject)
    except (ValueError, RecursionError):
        return None
    if path == RESPONSES:
        own: object = request.get("include") or []
        included = cast("list[object]", own) if isinstance(own, list) else [INCLUDED]
        return None if INCLUDED in included else msgspec.json.encode(request | {"include": [*included, INCLUDED]})
    if not (request.get("logprobs") is None or request.get("logprobs") is False):
        return None
    return msgspec.json.encode(request | {"logprobs": True if path == CHAT else 1})


def logprobs_of(body: bytes) -> list[float]:
    """Return the log-probabilities of all tokens of an answer, of all its choices; an empty list if it has none."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return []
    values = [value for holder in _holders(answer) for value in _values(holder.get("logprobs"))]
    return [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def without_logprobs(body: bytes) -> bytes:
    """Return the answer without log-probabilities, as a request that does not ask for them gets it."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return body
    is_response = _is_response(answer)
    for holder in _holders(answer):
        if "logprobs" in holder:
            holder["logprobs"] = [] if is_response else None
    return msgspec.json.encode(answer)


def _is_response(answer: object) -> bool:
    return isinstance(answer, dict) and "output" in answer


def _holders(answer: object) -> Iterator[JsonObject]:
    """Yield the objects of an answer that can have the member `logprobs`."""
    match answer:
        case {"choices": list() as choices}:  # pyright: ignore[reportUnknownVariableType]
            yield from as_objects(cast("object", choices))
        case {"output": list() as output}:  # pyright: ignore[reportUnknownVariableType]
            for item in as_objects(cast("object", output)):
                yield from as_objects(item.get("content"))
        case _:
            return


def _values(logprobs: object) -> Iterator[object]:
    """Yield the numbers in one member `logprobs`: a list of tokens, or an object with lists of them."""
    match logprobs:
        case list():
            for token in as_objects(logprobs):  # pyright: ignore[reportUnknownArgumentType]
                yield token.get("logprob")
        case {"token_logprobs": list() as numbers}:  # pyright: ignore[reportUnknownVariableType]
            yield from cast("list[object]", numbers)
        case dict():
            members = cast("JsonObject", logprobs)
            for name in ("content", "refusal"):
                yield from _values(members.get(name))
        case _:
            return
