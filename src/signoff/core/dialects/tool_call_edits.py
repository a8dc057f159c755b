"""Tool calls in an answer as a reviewer sees and edits them, in the formats of all three APIs.

An edit of calls is `{"tool_calls": [{"id", "arguments" | "refuse"}], "text"?}`. Calls that it does not name stay as
they are. A refused call goes, and the text of the answer says so, because only the client could give its result: an
agent reads that text with the results of the other calls, or ends its turn with it.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec

from signoff.core.decode import JsonObject, as_object, as_objects
from signoff.core.dialects.chat_answer import content_text
from signoff.core.fingerprint import fingerprint

_RESPONSE_CALLS = frozenset({"function_call", "custom_tool_call"})
_FINISHED_BY_CALLS = frozenset({"tool_calls", "function_call"})


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool in an answer, as the desk shows it."""

    id: str
    """Id of the call; its position, such as `#0`, if the model gave it none, or gave two calls the same one."""
    name: str
    """Name of the tool."""
    kind: Literal["function", "custom"]
    """`function` takes a JSON object, `custom` takes a text."""
    arguments: str
    """Arguments as the model wrote them: JSON, or the text for a custom tool."""
    schema: JsonObject | bool | None = None
    """JSON schema of the arguments, from the request; None if it has none."""
    is_known: bool = True
    """True if the request has a tool of this name."""


class CallEdit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reviewer's change to one call."""

    id: str
    """Id of the call, as in `ToolCall`."""
    arguments: Any = msgspec.UNSET
    """New arguments: a JSON object, or its text; not set to keep them."""
    refuse: str | msgspec.UnsetType = msgspec.UNSET
    """Reason for which the call is refused, which the agent reads; not set to let it pass."""


class CallsEdit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reviewer's changes to the calls of an answer."""

    tool_calls: list[CallEdit]
    """At most one change for each call."""
    text: str | msgspec.UnsetType = msgspec.UNSET
    """New text beside the calls; not set to keep it."""


def is_calls_edit(edit: bytes) -> bool:
    """Return True if `edit` is meant as an edit of calls: an object with `tool_calls`, and nothing else but `text`."""
    try:
        members = msgspec.json.decode(edit, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return "tool_calls" in members and not members.keys() - {"tool_calls", "text"}


def parse_calls_edit(edit: bytes) -> CallsEdit:
    """Return an edit of calls. Raises ValueError, which names the member that is at fault."""
    return msgspec.json.decode(edit, type=CallsEdit)


def tool_calls_of(answer: bytes | None, request_body: bytes) -> list[ToolCall]:
    """Return the calls of tools in an answer, with the schemas of their arguments; none for any other answer."""
    calls = _calls_in(_decode(answer))
    if not calls:
        return []
    tools = _tools_of(request_body)
    return [_described(call, call_id, tools) for call, call_id in zip(calls, _ids_of(calls), strict=True)]


def has_tools(request_body: bytes) -> bool:
    """Return True if a request offers tools."""
    return bool(_tools_of(request_body))


def tool_names(request_body: bytes) -> list[str]:
    """Return the names of the tools that a request offers."""
    return list(_tools_of(request_body))


def count_choices(answer: bytes | None) -> int:
    """Return the number of choices of an answer; 1 where there can be no others."""
    return len(as_objects(_decode(answer).get("choices"))) or 1


def arguments_text(arguments: Any) -> str:
    """Return the arguments of an edit as JSON text; a text stays as it is."""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def with_edited_calls(answer: bytes, edit: CallsEdit) -> bytes:
    """Return the answer with the changes of `edit`, which names calls of it; other names have no effect.

    The envelope stays: id, time, model and usage. An answer without calls left ends as one that the model ended itself.
    """
    whole = _decode(answer)
    plan = _Plan(_calls_in(whole), edit)
    if "choices" in whole:
        choices = as_objects(whole["choices"])
        return msgspec.json.encode(whole | {"choices": [_edited_choice(choice, plan) for choice in choices]})
    if "output" in whole:
        return msgspec.json.encode(_edited_response(whole, plan))
    return msgspec.json.encode(_edited_message(whole, plan))


def _decode(answer: bytes | None) -> JsonObject:
    try:
        return as_object(msgspec.json.decode(answer or b"null"))
    except (ValueError, RecursionError):
        return {}


def _calls_in(whole: JsonObject) -> list[JsonObject]:
    """Return the calls of a decoded answer, in order."""
    if "choices" in whole:
        return [call for choice in as_objects(whole["choices"]) for call in _calls_of_choice(choice)]
    if "output" in whole:
        return [item for item in as_objects(whole["output"]) if item.get("type") in _RESPONSE_CALLS]
    return [block for block in as_objects(whole.get("content")) if block.get("type") == "tool_use"]


def _calls_of_choice(choice: JsonObject) -> list[JsonObject]:
    """Return the calls of a choice, also one in the earlier form `function_call`, which has no id."""
    message = as_object(choice.get("message"))
    function = as_object(message.get("function_call"))
    return [*as_objects(message.get("tool_calls")), *([function] if function else [])]


def _ids_of(calls: Sequence[JsonObject]) -> list[str]:
    """Return the ids by which an edit names the calls."""
    ids = [call.get("call_id", call.get("id")) for call in calls]
    return [
        each if isinstance(each, str) and each and ids.count(each) == 1 else f"#{number}"
        for number, each in enumerate(ids)
    ]


def _described(call: JsonObject, call_id: str, tools: dict[str, JsonObject | bool | None]) -> ToolCall:
    name, arguments = _name_and_arguments(call)
    kind = "custom" if _is_custom(call) else "function"
    schema = tools.get(name)
    return ToolCall(id=call_id, name=name, kind=kind, arguments=arguments, schema=schema, is_known=name in tools)


def _is_custom(call: JsonObject) -> bool:
    return call.get("type") in {"custom", "custom_tool_call"}


def _name_and_arguments(call: JsonObject) -> tuple[str, str]:
    if call.get("type") == "tool_use":
        return str(call.get("name") or ""), arguments_text(call.get("input") or {})
    function = as_object(call.get("function")) or as_object(call.get("custom")) or call
    arguments = function.get("input" if _is_custom(call) else "arguments")
    return str(function.get("name") or ""), arguments_text("" if arguments is None else arguments)


def _with_arguments(call: JsonObject, arguments: str) -> JsonObject:
    member = "input" if _is_custom(call) else "arguments"
    if call.get("type") == "tool_use":
        return call | {"input": msgspec.json.decode(arguments)}
    for name in ("function", "custom"):
        if function := as_object(call.get(name)):
            return call | {name: function | {member: arguments}}
    return call | {member: arguments}


class _ToolsRequest(msgspec.Struct):
    tools: Any = None
    functions: Any = None


def _tools_of(request_body: bytes) -> dict[str, JsonObject | bool | None]:
    """Return the schemas of the tools that a request offers, by name."""
    try:
        request = msgspec.json.decode(request_body, type=_ToolsRequest)
    except (ValueError, RecursionError):
        return {}
    tools = dict[str, JsonObject | bool | None]()
    for tool in [*as_objects(request.tools), *as_objects(request.functions)]:
        function = as_object(tool.get("function")) or as_object(tool.get("custom")) or tool
        if isinstance(name := function.get("name"), str):
            schema = function.get("parameters", function.get("input_schema"))
            tools[name] = cast("JsonObject | bool", schema) if isinstance(schema, dict | bool) else None
    return tools


class _Plan:
    """The changes of an edit, by the calls of a decoded answer."""

    def __init__(self, calls: Sequence[JsonObject], edit: CallsEdit) -> None:
        self.text = edit.text
        """New text of the answer, if it is set."""
        edits = {each.id: each for each in edit.tool_calls}
        self._edits = {id(call): edits.get(call_id) for call, call_id in zip(calls, _ids_of(calls), strict=True)}
        self._names = [_name_and_arguments(call)[0] for call in calls]
        self._numbers = {id(call): number for number, call in enumerate(calls)}

    def is_refused(self, call: JsonObject) -> bool:
        """Return True if `call` is refused."""
        edit = self._edits.get(id(call))
        return edit is not None and edit.refuse is not msgspec.UNSET

    def edited(self, call: JsonObject) -> JsonObject:
        """Return a call that is not refused with its new arguments."""
        edit = self._edits.get(id(call))
        if edit is None or edit.arguments is msgspec.UNSET:
            return call
        return _with_arguments(call, arguments_text(edit.arguments))

    def passed(self, calls: Sequence[JsonObject]) -> list[JsonObject]:
        """Return those of `calls` that are not refused, with their new arguments."""
        return [self.edited(call) for call in calls if not self.is_refused(call)]

    def refusals(self, calls: Sequence[JsonObject]) -> str:
        """Return what the text says about those of `calls` that are refused; empty if none is."""
        refused = [(call, edit) for call in calls if (edit := self._edits.get(id(call))) and self.is_refused(call)]
        return "\n\n".join(self._refusal(call, str(edit.refuse)) for call, edit in refused)

    def _refusal(self, call: JsonObject, reason: str) -> str:
        """Return what the text says about a refused call, without its arguments: they may be why it is refused."""
        number = self._numbers[id(call)]
        name = self._names[number]
        position = f" (call {number + 1} of {len(self._names)})" if self._names.count(name) > 1 else ""
        return f"A reviewer refused the call of {name}{position}, so it was not made: {reason}"


def _join(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _edited_choice(choice: JsonObject, plan: _Plan) -> JsonObject:
    message, calls = dict(as_object(choice.get("message"))), _calls_of_choice(choice)
    passed, refusals = plan.passed(calls), plan.refusals(calls)
    changes: JsonObject = {}
    if plan.text is not msgspec.UNSET or refusals:
        text = content_text(message.get("content")) if plan.text is msgspec.UNSET else plan.text
        message["content"] = _join(text, refusals) or None
        changes |= {"logprobs": None} if "logprobs" in choice else {}
    for name in ("tool_calls", "function_call"):
        message.pop(name, None)
    legacy = [call for call in passed if "function" not in call and "custom" not in call]
    if tool_calls := [call for call in passed if call not in legacy]:
        message["tool_calls"] = tool_calls
    if legacy:
        message["function_call"] = legacy[0]
    if calls and not passed and choice.get("finish_reason") in _FINISHED_BY_CALLS:
        changes |= {"finish_reason": "stop"}
    return choice | {"message": message} | changes


def _edited_message(whole: JsonObject, plan: _Plan) -> JsonObject:
    """Return a message of Anthropic's API: what is said comes before the calls, as the model itself writes it."""
    blocks = as_objects(whole.get("content"))
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    others = [block for block in blocks if block.get("type") != "tool_use"]
    if plan.text is not msgspec.UNSET:
        others = [block for block in others if block.get("type") != "text"]
    texts = [plan.text if isinstance(plan.text, str) else "", plan.refusals(calls)]
    said = [{"type": "text", "text": text} for text in texts if text]
    passed = plan.passed(calls)
    ending = {"stop_reason": "end_turn"} if not passed and whole.get("stop_reason") == "tool_use" else {}
    return whole | {"content": [*others, *said, *passed]} | ending


def _edited_response(whole: JsonObject, plan: _Plan) -> JsonObject:
    """Return a response. What is said comes before the calls, but not between them and the reasoning before them."""
    items, output = as_objects(whole["output"]), list[JsonObject]()
    calls = [item for item in items if item.get("type") in _RESPONSE_CALLS]
    texts = [plan.text if isinstance(plan.text, str) else "", plan.refusals(calls)]
    said = [_message_item(text, number, whole) for number, text in enumerate(texts) if text]
    for reasoning, items_after in _by_reasoning(items):
        texts_after = [each for each in items_after if plan.text is msgspec.UNSET and each.get("type") == "message"]
        others = [each for each in items_after if each.get("type") != "message"]
        passed = plan.passed(others)
        follows = reasoning if texts_after or passed or not items_after else []  # reasoning alone is refused by the API
        has_calls = any(each.get("type") in _RESPONSE_CALLS for each in others)
        new, said = (said, []) if has_calls else ([], said)
        output += [*follows, *texts_after, *new, *passed] if texts_after else [*new, *follows, *passed]
    output += said
    changes: JsonObject = {"output": output}
    if "output_text" in whole:
        changes["output_text"] = _output_text(output)
    return whole | changes


def _by_reasoning(items: Sequence[JsonObject]) -> list[tuple[list[JsonObject], list[JsonObject]]]:
    """Return the items in groups: reasoning, and what followed from it."""
    groups: list[tuple[list[JsonObject], list[JsonObject]]] = [([], [])]
    for item in items:
        is_reasoning = item.get("type") == "reasoning"
        if is_reasoning and groups[-1][1]:
            groups.append(([], []))
        groups[-1][0 if is_reasoning else 1].append(item)
    return groups


def _message_item(text: str, number: int, whole: JsonObject) -> JsonObject:
    name = fingerprint(str(whole.get("id")).encode(), str(number).encode(), text.encode())[:32]
    content: JsonObject = {"type": "output_text", "text": text, "annotations": []}
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "status": "completed", "content": [content]}


def _output_text(output: Sequence[JsonObject]) -> str:
    return "".join(content_text(item.get("content")) for item in output if item.get("type") == "message")
