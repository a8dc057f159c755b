"""Forms of whole answers: the members that clients of each API rely on.

Sources: the API references of OpenAI ("Chat", "Completions", "Responses") and of Anthropic ("Messages").
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)
from signoff.core.decode import JsonObject

T = TypeVar("T")
_Some = Annotated[list[T], msgspec.Meta(min_length=1)]


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Custom(msgspec.Struct):
    name: str
    input: str


class _FunctionCall(msgspec.Struct, tag="function", tag_field="type"):
    id: str
    function: _Function


class _CustomCall(msgspec.Struct, tag="custom", tag_field="type"):
    id: str
    custom: _Custom


class _ChatMessage(msgspec.Struct):
    role: Literal["assistant"] = "assistant"
    content: str | list[JsonObject] | None = None
    refusal: str | None = None
    tool_calls: list[_FunctionCall | _CustomCall] | None = None
    function_call: _Function | None = None


class _ChatChoice(msgspec.Struct):
    message: _ChatMessage
    finish_reason: str | None = None
    index: int = 0


class _Chat(msgspec.Struct):
    choices: _Some[_ChatChoice]


class _TextChoice(msgspec.Struct):
    text: str


class _Text(msgspec.Struct):
    choices: _Some[_TextChoice]


class _Item(msgspec.Struct):
    type: str


class _Response(msgspec.Struct):
    output: list[_Item]


class _OutputMessage(msgspec.Struct):
    content: list[_Item]
    role: Literal["assistant"] = "assistant"


class _OutputCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str


class _OutputCustomCall(msgspec.Struct):
    call_id: str
    name: str
    input: str


class _Message(msgspec.Struct):
    type: Literal["message"]
    content: list[_Item]
    role: Literal["assistant"] = "assistant"


class _TextBlock(msgspec.Struct):
    text: str


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: JsonObject


class _Data(msgspec.Struct):
    data: list[Any]


class _Results(msgspec.Struct):
    results: list[Any]


class _TokenCount(msgspec.Struct):
    input_tokens: int


_FORMS: dict[str, type[msgspec.Struct]] = {
    CHAT: _Chat,
    COMPLETIONS: _Text,
    EDITS: _Text,
    RESPONSES: _Response,
    MESSAGES: _Message,
    EMBEDDINGS: _Data,
    MODERATIONS: _Results,
    RERANK: _Results,
    COUNT_TOKENS: _TokenCount,
}
# Members of which a JSON object has one if it is meant as a whole answer of the path.
_MARKS = {CHAT: "choices", COMPLETIONS: "choices", EDITS: "choices", RESPONSES: "output", MESSAGES: "content"}
# Lists of items of many types, and the forms of some of these.
_ITEMS = {RESPONSES: "output", MESSAGES: "content"}
_ITEM_FORMS: dict[str, type[msgspec.Struct]] = {
    "message": _OutputMessage,
    "function_call": _OutputCall,
    "custom_tool_call": _OutputCustomCall,
    "text": _TextBlock,
    "tool_use": _ToolUse,
}


def is_meant_as_answer(path: str, body: bytes) -> bool:
    """Return True if `body` is a JSON object that is meant as a whole answer of `path`, though it may have faults."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return path in _FORMS and _MARKS.get(path) in {None, *members}


def form_fault(path: str, body: bytes) -> str | None:
    """Return the first fault of a whole answer of `path`, with the place of the member; None for a sound one."""
    try:
        msgspec.json.decode(body, type=_FORMS[path])
        for number, item in enumerate(msgspec.json.decode(body)[_ITEMS[path]] if path in _ITEMS else []):
            if (fault := _item_fault(item)) is not None:
                return fault.replace("`$", f"`$.{_ITEMS[path]}[{number}]")
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _item_fault(item: JsonObject) -> str | None:
    form = _ITEM_FORMS.get(item["type"])
    if form is None:
        return None
    try:
        msgspec.convert(item, form)
    except msgspec.ValidationError as error:
        message = str(error)
        return message if "`$" in message else f"{message} - at `$`"
    return None
