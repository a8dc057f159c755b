"""Tool calls in answers: as the desk shows them, as a reviewer edits them, and as the client gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core.api_paths import CHAT, MESSAGES, RESPONSES
from signoff.core.dialects.answer import answer_text, collect
from signoff.core.dialects.convert import stream_events
from signoff.core.dialects.edited_answer import check_edit, edited_answer
from signoff.core.dialects.tool_call_edits import tool_calls_of
from signoff.core.job import Job
from signoff.errors import BadRequest
from support.stores import a_job

REFUND_SCHEMA = {
    "type": "object",
    "properties": {
        "amount": {"type": "number", "maximum": 200},
        "items": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["amount"],
    "additionalProperties": False,
}
TOOLS: dict[str, list[Any]] = {
    CHAT: [
        {"type": "function", "function": {"name": "refund", "parameters": REFUND_SCHEMA}},
        {"type": "function", "function": {"name": "mail"}},
    ],
    RESPONSES: [
        {"type": "function", "name": "refund", "parameters": REFUND_SCHEMA},
        {"type": "function", "name": "mail"},
    ],
    MESSAGES: [{"name": "refund", "input_schema": REFUND_SCHEMA}, {"name": "mail", "input_schema": {"type": "object"}}],
}
ENVELOPE = {
    "id": "x-1",
    "model": "gpt",
    "created": 7,
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}
PATHS = [CHAT, RESPONSES, MESSAGES]
CALLS = [("c1", "refund", {"amount": 150}), ("c2", "mail", {"to": "ann"})]


def answer(path: str, calls: list[tuple[str, str, Any]] = CALLS, text: str = "") -> dict[str, Any]:
    """Return an answer of the endpoint that makes these calls."""
    if path == CHAT:
        called: list[Any] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for call_id, name, arguments in calls
        ]
        message = {"role": "assistant", "content": text or None, "tool_calls": called}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
        return ENVELOPE | {"object": "chat.completion", "choices": [choice]}
    if path == RESPONSES:
        called = [
            {"id": f"fc_{call_id}", "type": "function_call", "status": "completed", "call_id": call_id, "name": name}
            | {"arguments": json.dumps(arguments)}
            for call_id, name, arguments in calls
        ]
        said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        said |= {"content": [{"type": "output_text", "text": text, "annotations": []}]}
        whole = {"id": "resp_1", "object": "response", "model": "gpt", "status": "completed", "created_at": 7}
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        return whole | {"output": [*([said] if text else []), *called], "usage": usage}
    called = [
        {"type": "tool_use", "id": call_id, "name": name, "input": arguments} for call_id, name, arguments in calls
    ]
    blocks = [*([{"type": "text", "text": text}] if text else []), *called]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": blocks}
    return head | {"stop_reason": "tool_use", "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 4}}


def held(path: str, whole: Any, **request: Any) -> Job:
    body = {"tools": TOOLS[path]} | request
    return a_job(path=path, response=json.dumps(whole).encode(), body=json.dumps(body).encode(), door="openai")


def edited(path: str, whole: Any, edit: Any) -> Any:
    """Return the answer after an edit that is sound."""
    job, raw = held(path, whole), json.dumps(edit).encode()
    check_edit(job, raw)
    return json.loads(edited_answer(job, raw))


def calls_in(path: str, whole: Any) -> list[tuple[str, str, Any]]:
    """Return the calls of an answer, by reading its format."""
    if path == CHAT:
        called: list[Any] = whole["choices"][0]["message"].get("tool_calls") or []
        return [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in called]
    if path == RESPONSES:
        items = [item for item in whole["output"] if item["type"] == "function_call"]
        return [(item["call_id"], item["name"], json.loads(item["arguments"])) for item in items]
    return [(block["id"], block["name"], block["input"]) for block in whole["content"] if block["type"] == "tool_use"]


def ending(path: str, whole: Any) -> str:
    return {CHAT: lambda: whole["choices"][0]["finish_reason"], RESPONSES: lambda: whole["status"]}.get(
        path, lambda: whole["stop_reason"]
    )()


CALLED = {CHAT: "tool_calls", RESPONSES: "completed", MESSAGES: "tool_use"}
SAID = {CHAT: "stop", RESPONSES: "completed", MESSAGES: "end_turn"}


@pytest.mark.parametrize("path", PATHS)
def test_calls_are_described_with_the_schemas_of_their_tools(path: str) -> None:
    job = held(path, answer(path, [*CALLS, ("c3", "unknown", {})]))
    calls = tool_calls_of(job.response, job.body)
    assert [(call.id, call.name, json.loads(call.arguments)) for call in calls] == [*CALLS, ("c3", "unknown", {})]
    assert [call.schema for call in calls][::2] == [REFUND_SCHEMA, None]
    assert [call.is_known for call in calls] == [True, True, False]


@pytest.mark.parametrize(
    "whole", [None, "text", 3, [], {"choices": 3}, {"output": [3]}, {"content": "x"}], ids=json.dumps
)
def test_other_answers_have_no_calls(whole: Any) -> None:
    assert not tool_calls_of(json.dumps(whole).encode(), b"{}")
    assert not tool_calls_of(None, b"not JSON")


@pytest.mark.parametrize("text", ["", "I refund that."])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("arguments", [{"amount": 100}, '{"amount": 100}'], ids=["object", "text"])
def test_a_reviewer_changes_arguments_and_nothing_else(path: str, text: str, arguments: Any) -> None:
    whole = answer(path, text=text)
    changed = edited(path, whole, {"tool_calls": [{"id": "c1", "arguments": arguments}]})
    assert calls_in(path, changed) == [("c1", "refund", {"amount": 100}), CALLS[1]]
    assert (answer_text(json.dumps(changed).encode()) or "", ending(path, changed)) == (text, CALLED[path])
    expected = answer(path, [("c1", "refund", {"amount": 100}), CALLS[1]], text)
    assert collected(path, changed) == collected(path, expected)


def collected(path: str, whole: Any) -> Any:
    """Return what a client makes of the stream of an answer, with arguments that are decoded."""
    called = json.loads(collect(list(stream_events(path, json.dumps(whole).encode(), with_usage=True))).body)
    return called | {"choices": None, "output": None, "content": None}, calls_in(path, called), ending(path, called)


@pytest.mark.parametrize("path", PATHS)
def test_a_refused_call_goes_and_the_agent_reads_why(path: str) -> None:
    whole = answer(path, text="Two calls.")
    changed = edited(path, whole, {"tool_calls": [{"id": "c1", "refuse": "Refunds need a receipt."}]})
    text = answer_text(json.dumps(changed).encode()) or ""
    assert calls_in(path, changed) == [CALLS[1]]
    assert text.startswith("Two calls.")
    assert "refused the call of refund, so it was not made" in text
    assert "150" not in text, "the arguments may be why it was refused"
    assert text.endswith("Refunds need a receipt.")
    assert ending(path, changed) == CALLED[path]
    assert collected(path, changed)[1:] == ([CALLS[1]], CALLED[path])


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_whose_calls_are_all_refused_ends_the_turn(path: str) -> None:
    refusals = [{"id": call_id, "refuse": "No."} for call_id, *_ in CALLS]
    changed = edited(path, answer(path), {"tool_calls": refusals})
    assert calls_in(path, changed) == []
    assert ending(path, changed) == SAID[path]
    assert (answer_text(json.dumps(changed).encode()) or "").count("No.") == 2
    assert collected(path, changed)[1:] == ([], SAID[path])


@pytest.mark.parametrize("path", PATHS)
def test_the_text_beside_calls_can_be_changed(path: str) -> None:
    for text in ("", "old"):
        changed = edited(path, answer(path, text=text), {"tool_calls": [], "text": "new"})
        assert (answer_text(json.dumps(changed).encode()), calls_in(path, changed)) == ("new", CALLS)
    without = edited(path, answer(path, text="old"), {"tool_calls": [], "text": ""})
    assert (answer_text(json.dumps(without).encode()) or "", calls_in(path, without)) == ("", CALLS)


def test_a_refusal_names_the_position_of_one_of_several_calls_of_a_tool() -> None:
    calls = [("c1", "mail", {"to": "a"}), ("c2", "mail", {"to": "b"})]
    changed = edited(CHAT, answer(CHAT, calls), {"tool_calls": [{"id": "c2", "refuse": "No."}]})
    assert "mail (call 2 of 2), so" in changed["choices"][0]["message"]["content"]


def test_reasoning_goes_with_the_calls_that_followed_from_it() -> None:
    whole = answer(RESPONSES)
    first, second = whole["output"]
    thought: list[Any] = [{"id": f"rs_{number}", "type": "reasoning", "summary": []} for number in range(2)]
    whole["output"] = [thought[0], first, thought[1], second]
    changed = edited(RESPONSES, whole, {"tool_calls": [{"id": "c1", "refuse": "No."}]})
    assert [item["type"] for item in changed["output"]] == ["message", "reasoning", "function_call"]
    assert changed["output"][1]["id"] == "rs_1"
    whole["output"] = [thought[0], first, second]
    changed = edited(RESPONSES, whole, {"tool_calls": [{"id": "c1", "refuse": "No."}]})
    assert [item["type"] for item in changed["output"]] == ["message", "reasoning", "function_call"]


def test_calls_without_ids_of_their_own_are_named_by_position() -> None:
    whole = answer(CHAT, [("", "refund", {"amount": 1}), ("same", "mail", {}), ("same", "mail", {})])
    job = held(CHAT, whole)
    assert [call.id for call in tool_calls_of(job.response, job.body)] == ["#0", "#1", "#2"]
    changed = edited(
        CHAT, whole, {"tool_calls": [{"id": "#0", "arguments": {"amount": 2}}, {"id": "#2", "refuse": "No"}]}
    )
    assert calls_in(CHAT, changed) == [("", "refund", {"amount": 2}), ("same", "mail", {})]


def test_calls_of_the_earlier_form_and_of_custom_tools_are_edited() -> None:
    whole = answer(CHAT)
    message = whole["choices"][0]["message"]
    del message["tool_calls"]
    message["function_call"] = {"name": "refund", "arguments": '{"amount":150}'}
    whole["choices"][0]["finish_reason"] = "function_call"
    changed = edited(CHAT, whole, {"tool_calls": [{"id": "#0", "arguments": {"amount": 9}}]})
    assert changed["choices"][0]["message"]["function_call"] == {"name": "refund", "arguments": '{"amount":9}'}
    changed = edited(CHAT, whole, {"tool_calls": [{"id": "#0", "refuse": "No."}]})
    assert "function_call" not in changed["choices"][0]["message"]
    assert changed["choices"][0]["finish_reason"] == "stop"
    custom = {"id": "c9", "type": "custom", "custom": {"name": "shell", "input": "rm -r /"}}
    message["tool_calls"] = [custom]
    changed = edited(CHAT, whole, {"tool_calls": [{"id": "c9", "arguments": "ls"}]})
    assert changed["choices"][0]["message"]["tool_calls"][0]["custom"] == {"name": "shell", "input": "ls"}
    item = {"id": "ct", "type": "custom_tool_call", "call_id": "c9", "name": "shell", "input": "rm"}
    whole = answer(RESPONSES) | {"output": [item]}
    changed = edited(RESPONSES, whole, {"tool_calls": [{"id": "c9", "arguments": "ls"}]})
    assert changed["output"] == [item | {"input": "ls"}]


FAULTS: list[tuple[Any, str]] = [
    (
        {"tool_calls": [{"id": "c1", "arguments": {"amount": 500}}]},
        r"`tool_calls\[0\].arguments` at `.amount`: 500 is greater",
    ),
    (
        {"tool_calls": [{"id": "c1", "arguments": {"amount": 1, "items": ["a", 3]}}]},
        r"arguments` at `.items\[1\]`: 3 is not",
    ),
    ({"tool_calls": [{"id": "c1", "arguments": {}}]}, "amount.*schema of refund"),
    ({"tool_calls": [{"id": "c1", "arguments": "{"}]}, r"`tool_calls\[0\].arguments` must be a JSON object"),
    ({"tool_calls": [{"id": "c1", "arguments": [1]}]}, "must be a JSON object"),
    ({"tool_calls": [{"id": "c1", "arguments": None}]}, "must be a JSON object"),
    ({"tool_calls": [{"id": "c7", "refuse": "No"}]}, r"`tool_calls\[0\].id`.*'c7'.*c1 \(refund\), c2 \(mail\)"),
    ({"tool_calls": [{"id": "c1", "refuse": "No"}, {"id": "c1", "arguments": {"amount": 1}}]}, r"\[1\].id.*twice"),
    ({"tool_calls": [{"id": "c1", "refuse": "No", "arguments": {"amount": 1}}]}, "exclude each other"),
    ({"tool_calls": [{"id": "c1", "refuse": " "}]}, r"`tool_calls\[0\].refuse` must not be empty"),
    ({"tool_calls": [{"id": "c1", "argument": {}}]}, r"unknown field `argument`.*tool_calls\[0\]"),
    ({"tool_calls": [{"arguments": {}}]}, "missing required field `id`"),
    ({"tool_calls": {"c1": {}}}, r"Expected `array`.*\$.tool_calls"),
    ({"tool_calls": [], "text": 3}, r"Expected `str`.*\$.text"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("edit", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_faulty_edit_is_refused_with_its_place(path: str, edit: Any, message: str) -> None:
    job, raw = held(path, answer(path)), json.dumps(edit).encode()
    with pytest.raises(BadRequest, match=message):
        check_edit(job, raw)
    edited_answer(job, raw)  # a draft may have the fault, and is shown


@pytest.mark.parametrize("path", PATHS)
def test_an_edit_of_calls_needs_calls(path: str) -> None:
    job = held(path, answer(path, [], "Words."))
    with pytest.raises(BadRequest, match="calls no tool"):
        check_edit(job, b'{"tool_calls": []}')


def test_a_text_for_several_choices_is_ambiguous() -> None:
    whole = answer(CHAT)
    whole["choices"] *= 2
    with pytest.raises(BadRequest, match="one choice"):
        check_edit(held(CHAT, whole), b'{"tool_calls": [], "text": "x"}')


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_is_checked_as_one_of_a_model(path: str) -> None:
    job = held(path, answer(path, [("c1", "refund", {"amount": "all"}), CALLS[1]]))

    def check(calls: list[tuple[str, str, Any]]) -> None:
        check_edit(job, json.dumps(answer(path, calls)).encode())

    check([("c1", "refund", {"amount": 1}), ("c8", "mail", {})])
    check([("c1", "refund", {"amount": "all"})])  # as the model wrote it
    with pytest.raises(BadRequest, match=r"arguments of call 0 \(c1\) at `\.amount`: \"some\" is not"):
        check([("c1", "refund", {"amount": "some"})])
    with pytest.raises(BadRequest, match="no tool 'sue'"):
        check([("c8", "sue", {})])


BROKEN: list[tuple[str, Any, str]] = [
    (CHAT, {"choices": []}, "choices"),
    (CHAT, {"choices": [{"message": {"content": 3}}]}, r"\$\.choices\[0\]\.message\.content"),
    (CHAT, {"choices": [{"message": {"role": "user", "content": "x"}}]}, r"\$\.choices\[0\]\.message\.role"),
    (
        CHAT,
        {"choices": [{"message": {"tool_calls": [{"id": "c", "type": "function"}]}}]},
        "missing required field `function`",
    ),
    (RESPONSES, {"output": "words"}, r"\$\.output"),
    (
        RESPONSES,
        {"output": [{"type": "function_call", "name": "f"}]},
        r"missing required field `call_id`.*\$\.output\[0\]",
    ),
    (RESPONSES, {"output": [{"type": "message", "content": "x"}]}, r"\$\.output\[0\]\.content"),
    (MESSAGES, {"type": "message", "content": "x"}, r"\$\.content"),
    (MESSAGES, {"type": "message", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": "{}"}]}, "input"),
]


@pytest.mark.parametrize(("path", "whole", "place"), BROKEN, ids=[f"{path} {place}" for path, _, place in BROKEN])
def test_a_whole_answer_has_the_form_of_its_endpoint(path: str, whole: Any, place: str) -> None:
    with pytest.raises(BadRequest, match=place):
        check_edit(held(path, answer(path)), json.dumps(whole).encode())
