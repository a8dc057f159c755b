"""Answers as conditions read them: texts, tool calls and endings of completions, responses and messages.

All choices of an answer count, as all of them reach the caller.
"""

import contextlib
from collections.abc import Iterator
from typing import cast

import msgspec

from signoff.core.decode import JsonObject, as_objects
from signoff.core.dialects.answer import text_of_content, text_or_json

# Reasons of an ending that say that the answer was cut.
CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"})


class AnswerContent(msgspec.Struct):
    """The content of an answer, in one form for all formats."""

    texts: list[str]
    """Texts of the choices, or of the messages of a response."""
    tool_calls: list[JsonObject]
    """Calls as `name` and `arguments`; arguments that are not JSON stay a text."""
    refusal: str | None = None
    """Refusal of the model, in its own words; None if it did not refuse."""
    endings: list[str] = []
    """Reasons why the answer, or a choice of it, has ended."""

    @property
    def values(self) -> JsonObject:
        """The fields of `answer` in conditions."""
        text = "\n".join(self.texts)
        return {
            "text": text,
            "finish_reason": self.endings[0] if self.endings else None,
            "refusal": self.refusal,
            "tool_calls": self.tool_calls,
            "length": len(text),
            "empty": not text.strip() and not self.tool_calls,
            "truncated": not CUT.isdisjoint(self.endings),
        }


def read_answer(body: bytes) -> AnswerContent:
    """Return the content of an answer; one of another format is all text. Raises ValueError, RecursionError."""
    match msgspec.json.decode(body):
        case {"choices": list() as choices}:  # pyright: ignore[reportUnknownVariableType]
            return _read_choices(as_objects(cast("object", choices)))
        case {"output": list() as output, **members}:  # pyright: ignore[reportUnknownVariableType]
            return _read_response(as_objects(cast("object", output)), members)
        case {"type": "message", "content": list() as content, **members}:  # pyright: ignore[reportUnknownVariableType]
            return _read_message(as_objects(cast("object", content)), members)
        case _:
            return AnswerContent(texts=[text_or_json(body)], tool_calls=[])


def _read_choices(choices: list[JsonObject]) -> AnswerContent:
    reading = AnswerContent(texts=[], tool_calls=[])
    for choice in choices:
        message = choice.get("message")
        _add_ending(reading, choice.get("finish_reason"))
        if not isinstance(message, dict):
            reading.texts += [text] if isinstance(text := choice.get("text"), str) else []
            continue
        members = cast("JsonObject", message)
        reading.texts += [text] if (text := text_of_content(members.get("content"))) is not None else []
        reading.refusal = reading.refusal or _text(members.get("refusal"))
        reading.tool_calls += _calls_of(members)
    return reading


def _calls_of(message: JsonObject) -> Iterator[JsonObject]:
    for call in as_objects(message.get("tool_calls")):
        for kind, arguments in (("function", "arguments"), ("custom", "input")):
            if isinstance(called := call.get(kind), dict):
                members = cast("JsonObject", called)
                yield _call(members.get("name"), members.get(arguments))
    if isinstance(called := message.get("function_call"), dict):
        members = cast("JsonObject", called)
        yield _call(members.get("name"), members.get("arguments"))


def _read_response(output: list[JsonObject], response: JsonObject) -> AnswerContent:
    reading = AnswerContent(texts=[], tool_calls=[])
    details = response.get("incomplete_details")
    _add_ending(reading, cast("JsonObject", details).get("reason") if isinstance(details, dict) else None)
    _add_ending(reading, response.get("status"))
    for item in output:
        kind, content = str(item.get("type")), item.get("content")
        if kind == "message" and isinstance(content, list):
            pieces = as_objects(cast("object", content))
            reading.texts += [
                "".join(str(each.get("text", "")) for each in pieces if each.get("type") == "output_text")
            ]
            refusals = [_text(each.get("refusal")) for each in pieces if each.get("type") == "refusal"]
            reading.refusal = next(filter(None, refusals), reading.refusal)
        elif kind.endswith("_call"):
            arguments = next((item[name] for name in ("arguments", "input", "action") if name in item), None)
            reading.tool_calls.append(_call(item.get("name") or kind, arguments))
    return reading


def _read_message(content: list[JsonObject], message: JsonObject) -> AnswerContent:
    reading = AnswerContent(texts=[], tool_calls=[])
    _add_ending(reading, message.get("stop_reason"))
    reading.texts += ["".join(str(block.get("text", "")) for block in content if block.get("type") == "text")]
    calls = [block for block in content if str(block.get("type")).endswith("tool_use")]
    reading.tool_calls += [_call(call.get("name"), call.get("input")) for call in calls]
    if "refusal" in reading.endings:
        reading.refusal = reading.texts[0]
    return reading


def _call(name: object, arguments: object) -> JsonObject:
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = msgspec.json.decode(arguments)
    return {"name": str(name), "arguments": arguments}


def _add_ending(reading: AnswerContent, reason: object) -> None:
    if isinstance(reason, str):
        reading.endings = [*reading.endings, reason]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
