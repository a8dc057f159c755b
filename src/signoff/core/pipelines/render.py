"""Conversion of a request for a prompt into one for its model, with one user message."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from signoff.core.api_paths import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, PREDICT, RESPONSES
from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.composed import Prompt
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.template import placeholders, render_template
from signoff.errors import BadRequest

_PATHS = {CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS, PREDICT}
# Members of a request that hold its text.
_TEXT_MEMBERS = ("messages", "input", "prompt")


def render_request(prompt: Prompt, model: str, path: str, body: bytes, *, max_bytes: int) -> tuple[str, bytes]:
    """Return the path and the body of the request to `model`; other members of `body` stay as they are.

    Raises:
        BadRequest: `path` is not for prompts, the values do not match the placeholders, or the rendered prompt would
            have more than `max_bytes`.
    """
    if path not in _PATHS:
        raise BadRequest(f"{prompt.name!r} is a prompt; call it at {CHAT}, {COMPLETIONS}, {RESPONSES} or {MESSAGES}.")
    decoded = decode_request(body)
    members = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    text_member = next((name for name in _TEXT_MEMBERS if members.get(name) is not None), None)
    if text_member is not None:
        values = placeholder_values(prompt, request_text(members[text_member]))
    elif not isinstance(decoded, dict):
        values = placeholder_values(prompt, to_text(decoded))
    else:
        values = to_texts({name: members.pop(name) for name in placeholders(prompt.body) if name in members})
    text = render_template(prompt.body, values, max_bytes=max_bytes)
    others = {name: raw for name, raw in _raw_members(body).items() if name in members and name not in _TEXT_MEMBERS}
    own: dict[str, Any] = {COMPLETIONS: {"prompt": text}, RESPONSES: {"input": text}}.get(
        path, {"messages": [{"role": "user", "content": text}]}
    )
    return CHAT if path == PREDICT else path, msgspec.json.encode(others | {"model": model} | own)


def placeholder_values(prompt: Prompt, text: str) -> dict[str, str]:
    """Return a value for each placeholder: the members of a JSON object, or `text` itself for the only placeholder.

    Raises:
        BadRequest: the prompt has several placeholders, and `text` is not a JSON object with exactly these members.
    """
    names = placeholders(prompt.body)
    members = object_members(text)
    if members is not None and members.keys() == set(names):
        return to_texts(members)
    if len(names) <= 1:
        return dict.fromkeys(names, text)
    expected = f"{prompt.name!r} takes {join_names(names)}, as the members of one JSON object in the last user message"
    raise BadRequest(f"{expected} (got {'a text' if members is None else join_names(list(members)) or 'no members'}).")


def decode_request(body: bytes) -> Any:
    """Return the JSON value of a request. Raises BadRequest for a number out of range, or too deep nesting."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body cannot be read for a prompt or pipeline: {error}; correct this value.") from None


def request_text(content: Any) -> str:
    """Return the text of a request, or of its last user message. Raises BadRequest for content that is not text."""
    match content:
        case str():
            return content
        case [*items] if any(isinstance(item, dict) and "role" in item for item in items):
            contents = [item["content"] for item in items if _is_user_message(item)]
            return request_text(contents[-1]) if contents else ""
        case [*items] if items and all(isinstance(item, dict) and "text" in item for item in items):
            return "".join(str(item["text"]) for item in cast("list[dict[str, Any]]", items))
        case None:
            return ""
        case list():
            raise BadRequest("The user message must be text for a prompt or pipeline; remove other content.")
        case _:
            return to_text(content)


def object_members(text: str) -> dict[str, Any] | None:
    """Parse `text` as a JSON object; return None if it is not one."""
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
    """Convert values to texts. Raises BadRequest if one has no JSON form."""
    texts = dict[str, str]()
    for name, value in values.items():
        try:
            texts[name] = to_text(value)
        except ValueError as error:
            raise BadRequest(f"The argument `{name}` has no JSON form: {error}; correct its value.") from None
    return texts


def _raw_members(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the members of `body` as raw JSON."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}
