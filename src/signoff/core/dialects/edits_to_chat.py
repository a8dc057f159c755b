"""Translation between OpenAI's former edits API (`/v1/edits`) and chat completions.

Source: OpenAI's API reference of 2022, "Edits".
"""

from __future__ import annotations

from typing import Any

import msgspec

from signoff.core.decode import form_fault
from signoff.core.dialects.answer import text_of_content
from signoff.errors import ModelGarbled


class _Edit(msgspec.Struct):
    instruction: str
    input: str = ""


class _Choice(msgspec.Struct):
    message: _Message


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    created: msgspec.Raw = msgspec.Raw(b"0")
    usage: msgspec.Raw = msgspec.Raw(b"null")


def to_chat(body: bytes) -> bytes:
    """Return a chat body: instruction as the system message, input as the user message, other fields unchanged.

    Raises BadRequest for a body that is no request for an edit.
    """
    try:
        edit = msgspec.json.decode(body, type=_Edit)
    except msgspec.ValidationError as error:
        raise form_fault(error, "The body is not a valid edit request") from None
    members: dict[str, Any] = msgspec.json.decode(body)
    others = {name: value for name, value in members.items() if name not in {"instruction", "input", "stream"}}
    messages = [{"role": "system", "content": edit.instruction}, {"role": "user", "content": edit.input}]
    return msgspec.json.encode(others | {"messages": messages})


def from_chat(body: bytes) -> bytes:
    """Convert a chat completion to an answer of the edits API. Raises ModelGarbled if `body` is not one."""
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except msgspec.ValidationError as error:
        raise ModelGarbled(f"The model's answer is not a chat completion: {error}") from error
    texts = [text_of_content(each.message.content) or "" for each in completion.choices]
    choices = [{"text": text, "index": index} for index, text in enumerate(texts)]
    edit = {"object": "edit", "created": completion.created, "choices": choices, "usage": completion.usage}
    return msgspec.json.encode(edit)
