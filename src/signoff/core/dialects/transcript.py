"""Transcripts: everything that a request says to a model, as texts for a reviewer."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import msgspec

from signoff.core.binary import BinaryBody, decode_binary
from signoff.core.decode import JsonObject
from signoff.core.form import is_form, split_form
from signoff.errors import BadRequest

# Longer data in base64, such as images, is shown by its beginning; texts and arguments of tools are shown whole.
MAX_DATA_LENGTH = 2000
_DATA = re.compile(r"(?:data:[\w.+/-]+;base64,)?[A-Za-z0-9+/]+={0,2}")
# Members that say something to the model by themselves, in the order in which they are shown.
_TEXT_MEMBERS = ("instructions", "system", "prompt", "instruction")
_LIST_MEMBERS = ("messages", "input")
# Members of a message or item that say nothing beside its text.
_PLAIN_MEMBERS = {
    *("role", "content", "text", "id", "type", "status", "annotations", "index", "finish_reason", "logprobs")
}


class TranscriptEntry(NamedTuple):
    """Message, member or field of a request."""

    role: str
    """Role of a message, or name of the member or of the field."""
    text: str
    """Its text; what is no text is JSON."""


def transcript(body: bytes) -> list[TranscriptEntry]:
    """Return all that a request contains: every message with its tool calls, then all other members but `model`."""
    if (binary := decode_binary(body)) is not None:
        return list(_fields(binary))
    try:
        value: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return [TranscriptEntry("request", body.decode(errors="replace"))]
    if not isinstance(value, dict):
        return [TranscriptEntry("request", _text(value))]
    members = cast("JsonObject", value)
    entries = [TranscriptEntry(name, _text(members.pop(name))) for name in _TEXT_MEMBERS if name in members]
    for name in _LIST_MEMBERS:
        if name in members:
            entries += _messages(name, members.pop(name))
    members.pop("model", None)
    return [*entries, TranscriptEntry("other members", _json(members))] if members else entries


def answer_details(answer: bytes | None) -> str | None:
    """Return the answer as indented JSON if it says more than one text, such as calls of tools; None if it does not."""
    try:
        members = msgspec.json.decode(answer or b"null", type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
    parts = members.get("choices", members.get("output", members.get("content")))
    if not isinstance(parts, list):
        return None
    return None if len(cast("list[Any]", parts)) == 1 and _is_plain(parts[0]) else _json(members)


def _is_plain(part: Any) -> bool:
    """Return True if a choice or an item of an answer has one text and nothing else."""
    try:
        members = msgspec.convert(part, JsonObject)
        message = msgspec.convert(members.get("message", members), JsonObject)
    except msgspec.ValidationError:
        return False
    more = {name for name, value in message.items() if value} - _PLAIN_MEMBERS
    content = message.get("content")
    return not more and not (isinstance(content, list) and len(cast("list[Any]", content)) > 1)


def _messages(name: str, value: Any) -> Iterator[TranscriptEntry]:
    if not isinstance(value, list):
        yield TranscriptEntry(name, _text(value))
        return
    for message in cast("list[Any]", value):
        if not isinstance(message, dict):
            yield TranscriptEntry(name, _text(message))
            continue
        rest = dict(cast("JsonObject", message))
        role = str(rest.pop("role", rest.get("type", name)))
        content = rest.pop("content", None)
        has_more = bool(rest) and rest != {"type": "message"}
        if content is not None or not has_more:
            yield TranscriptEntry(role, "" if content is None else _text(content))
        if has_more:
            yield TranscriptEntry(f"{role}: more", _json(rest))


def _text(value: Any) -> str:
    """Return a text as it is, the texts of a list of parts, and anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_part(part) for part in cast("list[Any]", value))
    return _json(value)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        members = cast("JsonObject", part)
        if isinstance(members.get("text"), str) and not members.keys() - {"type", "text"}:
            return members["text"]
    return _json(part)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(_shortened(value)), indent=2).decode()


def _shortened(value: Any) -> Any:
    match value:
        case str() if len(value) > MAX_DATA_LENGTH and _DATA.fullmatch(value):
            return f"{value[:MAX_DATA_LENGTH]}… ({len(value)} characters)"
        case list():
            return [_shortened(each) for each in cast("list[Any]", value)]
        case dict():
            return {name: _shortened(each) for name, each in cast("JsonObject", value).items()}
        case _:
            return value


def _fields(binary: BinaryBody) -> Iterator[TranscriptEntry]:
    """Yield the fields of a form, or the type and size of another body."""
    kind = binary.content_type.partition(";")[0]
    whole = TranscriptEntry("body", f"{kind}, {len(binary.content)} bytes")
    if not is_form(binary.content_type):
        yield whole
        return
    try:
        fields = split_form(binary)
    except BadRequest:
        yield whole
        return
    for field in fields:
        content = binary.content[field.span]
        try:
            text = content.decode()
        except ValueError:
            text = f"{len(content)} bytes"
        yield TranscriptEntry(field.name, text)
