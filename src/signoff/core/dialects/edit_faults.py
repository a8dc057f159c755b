"""Faults of edits: what keeps a client from reading an edited answer, or a tool from taking a call.

Each message names the member, the fault and the remedy.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.chat_answer import content_text
from signoff.core.dialects.tool_call_edits import CallEdit, CallsEdit, ToolCall, arguments_text, count_choices
from signoff.core.json_schema import schema_fault
from signoff.errors import BadRequest

MAX_NAMED = 10


def check_calls_edit(calls: Sequence[ToolCall], edit: CallsEdit, answer: bytes | None) -> None:
    """Check that `edit` fits the `calls` of an answer, and the tools that are called. Raises BadRequest."""
    by_id, edited = {call.id: call for call in calls}, set[str]()
    for number, each in enumerate(edit.tool_calls):
        place = f"tool_calls[{number}]"
        if (call := by_id.get(each.id)) is None:
            raise BadRequest(f"`{place}.id`: the answer has no call {each.id!r}; its calls are {_named(calls)}.")
        if each.id in edited:
            raise BadRequest(f"`{place}.id`: the call {each.id!r} is edited twice; send one change for each call.")
        edited.add(each.id)
        _check_call_edit(place, call, each)
    if edit.text is not msgspec.UNSET and count_choices(answer) > 1:
        raise BadRequest(
            "`text` is for an answer with one choice, and this one has more; send the whole edited answer."
        )


def _named(calls: Sequence[ToolCall]) -> str:
    names = [f"{call.id} ({call.name})" for call in calls[:MAX_NAMED]]
    return ", ".join(names) + (", …" if len(calls) > MAX_NAMED else "")


def _check_call_edit(place: str, call: ToolCall, edit: CallEdit) -> None:
    if edit.refuse is not msgspec.UNSET:
        if edit.arguments is not msgspec.UNSET:
            raise BadRequest(f"`{place}`: `arguments` and `refuse` exclude each other; remove one of them.")
        if not edit.refuse.strip():
            raise BadRequest(f"`{place}.refuse` must not be empty: the agent reads it; say why the call is refused.")
    elif edit.arguments is not msgspec.UNSET:
        check_arguments(f"`{place}.arguments`", call, edit.arguments)


def check_arguments(place: str, call: ToolCall, arguments: Any) -> None:
    """Check the arguments of `call`, an object or JSON text, against the schema of its tool.

    `place` names them at the beginning of the message. Raises BadRequest.
    """
    if call.kind == "custom":
        if not isinstance(arguments, str):
            raise BadRequest(f"{place} must be a string, as {call.name} is a custom tool.")
        return
    try:
        value = msgspec.json.decode(arguments_text(arguments), type=JsonObject)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{place} must be a JSON object: {error}; send one with the arguments by name.") from None
    if (fault := schema_fault(call.schema, value)) is not None:
        raise BadRequest(
            f"{place}{_at(fault.path)}: {fault.message}; send arguments that fit the schema of {call.name}."
        )


def _at(path: str) -> str:
    return f" at `{path}`" if path else ""


def check_new_calls(calls: Sequence[ToolCall], original: Sequence[ToolCall], *, has_tools: bool) -> None:
    """Check the calls of a whole edited answer; those that the model itself made are taken as they are.

    Raises BadRequest.
    """
    unchanged = {(call.id, call.name, call.arguments) for call in original}
    for number, call in enumerate(calls):
        if (call.id, call.name, call.arguments) in unchanged:
            continue
        if has_tools and not call.is_known:
            raise BadRequest(
                f"Call {number} ({call.id}): the request has no tool {call.name!r}; name one of its `tools`."
            )
        check_arguments(f"The arguments of call {number} ({call.id})", call, call.arguments)


class AnswerFormat(msgspec.Struct, frozen=True):
    """The format that a request asks for: JSON, and perhaps with a schema."""

    schema: Any = None
    """JSON schema; None for any JSON."""


class _FormatRequest(msgspec.Struct):
    response_format: Any = None
    text: Any = None
    output_config: Any = None
    output_format: Any = None


def format_of(request_body: bytes) -> AnswerFormat | None:
    """Return the format that a request asks for; None if it asks for none.

    It is in `response_format` (chats), `text.format` (responses), or `output_config.format` or `output_format`
    (messages).
    """
    try:
        request = msgspec.json.decode(request_body, type=_FormatRequest)
    except (ValueError, RecursionError):
        return None
    formats = (
        request.response_format,
        as_object(request.text).get("format"),
        as_object(request.output_config).get("format"),
        request.output_format,
    )
    for each in formats:
        match each:
            case {"type": "json_object"}:
                return AnswerFormat()
            case {"type": "json_schema"}:
                members = as_object(each)
                return AnswerFormat(as_object(members.get("json_schema")).get("schema", members.get("schema")))
            case _:
                continue
    return None


def check_format(wanted: AnswerFormat, text: str) -> None:
    """Check that `text` has the format that the request asks for. Raises BadRequest."""
    try:
        value: object = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"The request asks for an answer in JSON, and the edited text is not JSON: {error}. Send JSON; to say "
            "something else, reject the answer, or in a chat send a whole answer with `refusal` instead of `content`."
        ) from None
    if (fault := schema_fault(wanted.schema, value)) is not None:
        raise BadRequest(f"The answer{_at(fault.path)}: {fault.message}; send JSON that fits the schema.")


def check_whole_format(wanted: AnswerFormat, answer: bytes) -> None:
    """Check the texts of a whole answer; one that refuses, or only calls tools, has none. Raises BadRequest."""
    for text in _texts_of(answer):
        check_format(wanted, text)


def _texts_of(answer: bytes) -> list[str]:
    whole = as_object(msgspec.json.decode(answer))
    if whole.get("stop_reason") == "refusal":
        return []
    if not isinstance(whole.get("choices"), list):
        return [text for text in (answer_text(answer),) if text]
    choices = [as_object(choice) for choice in whole["choices"]]
    messages = [as_object(choice.get("message")) or {"content": choice.get("text")} for choice in choices]
    return [text for message in messages if (text := content_text(message.get("content")))]
