"""Fill: a request to a prompt becomes the request to its model, as one message of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from signoff.core.endpoints import CHAT, COMPLETIONS, PREDICT, RESPONSES
from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.composed import Prompt
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.template import placeholders, render_template
from signoff.errors import BadRequest

# Where a request's text stands, at each endpoint.
_TEXT_IN = ("messages", "input", "prompt")


def render_request(prompt: Prompt, model: str, path: str, body: bytes) -> tuple[str, bytes]:
    """The path and the body for `model`; what else `body` asks for stays as it is. Raises BadRequest."""
    if path not in {CHAT, COMPLETIONS, RESPONSES, PREDICT}:
        raise BadRequest(f"{prompt.name!r} is a prompt: it is asked at {CHAT}, {COMPLETIONS} or {RESPONSES}.")
    decoded = msgspec.json.decode(body)
    members = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    place = next((name for name in _TEXT_IN if members.get(name) is not None), None)
    if place is not None:
        values = placeholder_values(prompt, request_text(members[place]))
    elif not isinstance(decoded, dict):
        values = placeholder_values(prompt, to_text(decoded))
    else:
        values = to_texts({name: members.pop(name) for name in placeholders(prompt.body) if name in members})
    said = render_template(prompt.body, values)
    kept = {name: raw for name, raw in _raw(body).items() if name in members and name not in _TEXT_IN}
    own: dict[str, Any] = {
        COMPLETIONS: {"prompt": said},
        RESPONSES: {"input": said},
    }.get(path, {"messages": [{"role": "user", "content": said}]})
    return CHAT if path == PREDICT else path, msgspec.json.encode(kept | {"model": model} | own)


def placeholder_values(prompt: Prompt, text: str) -> dict[str, str]:
    """A value for each placeholder: the members of a JSON object, or the text itself where there is one placeholder.

    Raises BadRequest.
    """
    names = placeholders(prompt.body)
    given = object_members(text)
    if given is not None and given.keys() == set(names):
        return to_texts(given)
    if len(names) <= 1:
        return dict.fromkeys(names, text)
    wanted = f"{prompt.name!r} takes {join_names(names)}, as the members of one JSON object in the last user message"
    if given is None:
        raise BadRequest(f"{wanted}; this is none.")
    raise BadRequest(f"{wanted}, not {join_names(list(given)) or 'none'}.")


def request_text(content: Any) -> str:
    """The text of a request: of the last user message where there are messages. Raises BadRequest."""
    match content:
        case str():
            return content
        case [*items] if any(isinstance(item, dict) and "role" in item for item in items):
            said = [item["content"] for item in items if _is_user_message(item)]
            return request_text(said[-1]) if said else ""
        case [*items] if items and all(isinstance(item, dict) and "text" in item for item in items):
            return "".join(str(item["text"]) for item in cast("list[dict[str, Any]]", items))
        case None:
            return ""
        case list():
            raise BadRequest("A prompt is given text, and nothing else.")
        case _:
            return to_text(content)


def object_members(text: str) -> dict[str, Any] | None:
    """The members of the JSON object that `text` is; None where it is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


def _is_user_message(item: Any) -> bool:
    match item:
        case {"role": "user", "content": _}:
            return True
        case _:
            return False


def to_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values as they go on. Raises BadRequest."""
    try:
        return {name: to_text(value) for name, value in values.items()}
    except ValueError as error:
        raise BadRequest(f"This is no argument: {error}.") from None


def _raw(body: bytes) -> dict[str, msgspec.Raw]:
    """The members, byte for byte."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}
