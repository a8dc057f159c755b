"""Answers with status 200 that are errors or no answers, and streams with unusual ends; read without a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.api_paths import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES
from signoff.engines.upstream_answers import as_model_answered, check_answer
from signoff.engines.upstream_events import EventStream
from signoff.errors import ModelAnswered, ModelCut, ModelGarbled

CHOICE = {"index": 0, "message": {"role": "assistant", "content": 'an \\"error\\"'}, "finish_reason": "stop"}
FAILED = {"id": "r", "object": "response", "status": "failed", "output": []}
ERRORS: dict[str, tuple[str, Any, int, str]] = {
    "with a code": (CHAT, {"error": {"message": "Overloaded", "code": 529}}, 529, "Overloaded"),
    "with a status in a text": (
        CHAT,
        {"error": {"message": "Slow down", "type": "rate_limit_error"}},
        429,
        "Slow down",
    ),
    "a text": (CHAT, {"error": "Overloaded"}, 502, "Overloaded"),
    "beside no choices": (CHAT, {"choices": [], "error": {"message": "Overloaded"}}, 502, "Overloaded"),
    "beside choices": (CHAT, {"choices": [CHOICE], "error": {"message": "Overloaded"}}, 502, "Overloaded"),
    "in a choice": (CHAT, {"choices": [CHOICE | {"error": {"message": "Cut", "code": 503}}]}, 503, "Cut"),
    "as the finish reason": (CHAT, {"choices": [CHOICE | {"finish_reason": "error"}]}, 502, "The model ended"),
    "anthropic": (
        CHAT,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        529,
        "Overloaded",
    ),
    "vllm": (CHAT, {"object": "error", "message": "Too long", "type": "BadRequestError", "code": 400}, 400, "Too long"),
    "fastapi": (CHAT, {"detail": "Overloaded"}, 502, "Overloaded"),
    "minimax": (
        CHAT,
        {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        502,
        "insufficient balance",
    ),
    "with a message of three letters": (CHAT, {"code": 500, "msg": "Overloaded", "success": False}, 500, "Overloaded"),
    "fastapi, of a message": (MESSAGES, {"detail": "Overloaded"}, 502, "Overloaded"),
    "bare": (EMBEDDINGS, {"message": "Overloaded", "code": 503}, 503, "Overloaded"),
    "response": (RESPONSES, FAILED | {"error": {"code": "server_error", "message": "Oops"}}, 500, "Oops"),
    "response that was cancelled": (RESPONSES, FAILED | {"status": "cancelled"}, 502, "has the status cancelled"),
    "response without an error": (
        RESPONSES,
        FAILED | {"error": None},
        502,
        "The model's response has the status failed",
    ),
    "of another route": ("/v1/images/generations", {"error": {"message": "Overloaded"}}, 502, "Overloaded"),
}
ANSWERS: list[tuple[str, Any]] = [
    (CHAT, {"choices": [CHOICE], "error": None}),
    (CHAT, {"choices": [CHOICE], "error": {}}),
    (CHAT, {"choices": [CHOICE], "error": ""}),
    (CHAT, {"choices": [CHOICE], "error": {"message": "", "code": None}}),
    (CHAT, {"choices": [CHOICE], "message": "ok", "detail": "ok"}),
    (CHAT, {"choices": [CHOICE], "base_resp": {"status_code": 0, "status_msg": ""}}),
    (CHAT, {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]}),
    (CHAT, {"choices": [CHOICE | {"message": {"role": "assistant", "content": '"choices": []'}}]}),
    (CHAT, {"choices": [{"index": 0, "text": "of the other endpoint"}]}),
    (CHAT, {"choices": [{"note": "message"} | CHOICE]}),
    (COMPLETIONS, {"choices": [{"index": 0, "text": ""}]}),
    (COMPLETIONS, {"choices": [CHOICE]}),
    (RESPONSES, FAILED | {"status": "incomplete", "error": None}),
    (EMBEDDINGS, {"data": []}),
    (MESSAGES, {"type": "message", "role": "assistant", "content": []}),
    (COUNT_TOKENS, {"input_tokens": 0}),
    ("/v1/rerank", [{"index": 0, "score": 0.5}]),
    ("GET /v1/videos/video_1", {"id": "video_1", "object": "video", "status": "failed", "error": {"message": "Oops"}}),
    ("/v1/images/generations", {"message": "ok"}),
]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_with_status_200_is_an_error(name: str) -> None:
    path, body, status, message = ERRORS[name]
    with pytest.raises(ModelAnswered, match=message) as caught:
        check_answer(path, json.dumps(body).encode())
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        {},
        None,
        [],
        "",
        {"id": "c"},
        ["a"],
        3,
        {"choices": None},
        {"choices": {}},
        {"choices": [], "usage": {"prompt_tokens": 1}},
        {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
        {"choices": [{}]},
        {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"index": 0, "delta": {"content": "x"}}]},
        {"choices": [{"index": 0, "delta": {"content": "message"}}]},
        {"choices": [{"index": 0, "message": {}}]},
        {"choices": [{"index": 0, "message": "text"}]},
        {"choices": ["message", "text"]},
        {"message": {"role": "assistant", "content": "x"}, "text": "x", "choices": [{}]},
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_json_without_an_answer_is_garbled(path: str, body: Any) -> None:
    with pytest.raises(ModelGarbled):
        check_answer(path, json.dumps(body).encode())


@pytest.mark.parametrize("path", [MESSAGES, COUNT_TOKENS])
@pytest.mark.parametrize("body", [{}, None, [], {"id": "x"}, {"content": None}, {"object": "list", "data": []}])
def test_json_without_a_message_is_garbled(path: str, body: Any) -> None:
    with pytest.raises(ModelGarbled):
        check_answer(path, json.dumps(body).encode())


@pytest.mark.parametrize(("path", "body"), ANSWERS, ids=str)
def test_an_answer_is_no_error(path: str, body: Any) -> None:
    check_answer(path, json.dumps(body).encode())


def event(payload: Any, name: str = "") -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + sse.event(json.dumps(payload).encode())


def delta(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def stream(*, json_only: bool = True) -> EventStream:
    return EventStream(1_000_000, json_only=json_only)


ERROR_EVENTS: dict[str, tuple[bytes, int]] = {
    "in a member": (event({"error": {"message": "Overloaded", "code": 503}}), 503),
    "beside a choice": (event(delta("") | {"error": {"message": "Overloaded", "code": 502}}), 502),
    "in a choice": (event({"choices": [{"delta": {}, "error": {"message": "Overloaded"}}]}), 502),
    "by its name": (event({"message": "Overloaded", "type": "overloaded_error"}, "error"), 529),
    "by its name, as a text": (b"event: error\ndata: Overloaded\n\n", 502),
    "by its name, behind its data": (b"data: Overloaded\nevent: error\n\n", 502),
    "by its type": (event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), 529),
    "by its kind": (event({"message": "Overloaded", "type": "overloaded_error"}), 529),
    "by what it describes": (event({"detail": "Overloaded"}), 502),
    "by its code and a message of three letters": (event({"code": 500, "msg": "Overloaded"}), 500),
    "by its status alone": (event({"status": "error", "message": "Overloaded"}), 502),
    "a response that failed": (
        event({"type": "response.failed", "response": FAILED | {"error": {"message": "Overloaded"}}}),
        502,
    ),
}


@pytest.mark.parametrize("name", ERROR_EVENTS)
def test_an_event_can_be_an_error(name: str) -> None:
    raw, status = ERROR_EVENTS[name]
    for cut in (raw, raw.rstrip()):  # a server may close the connection instead of a blank line
        events = stream()
        with pytest.raises(ModelAnswered, match="Overloaded") as caught:
            events.feed(event(delta("a")) + cut)
            events.end()
        assert caught.value.status == status
        assert events.take() == [event(delta("a"))]


def test_an_event_without_an_error_is_none() -> None:
    events = stream()
    events.feed(event(delta('an "error"') | {"error": None}) + event({"choices": [], "error": {}}))
    events.feed(event({"usage": {"prompt_tokens": 1}, "message": "ok"}) + event({"id": "c", "message": "ok"}))
    assert len(events.take()) == 4


def test_a_whole_stream_without_its_last_event_gets_one() -> None:
    events, raw = stream(), event(delta("a", "stop"))
    events.feed(raw[:-2])
    events.end()
    assert events.take() == [raw, sse.DONE]


@pytest.mark.parametrize("body", [event(delta("a")), event(delta("a")) + b'data: {"choices": [', b": comment\n\n", b""])
def test_a_stream_that_is_not_whole_is_cut(body: bytes) -> None:
    events = stream()
    events.feed(body)
    with pytest.raises(ModelCut):
        events.end()


@pytest.mark.parametrize(
    "before", [b": comment\n\n", event({"choices": [], "usage": {"prompt_tokens": 1}}), event({"type": "ping"})]
)
def test_a_stream_with_nothing_before_its_end_is_garbled(before: bytes) -> None:
    with pytest.raises(ModelGarbled):
        stream().feed(before + sse.DONE)


@pytest.mark.parametrize("payload", [{"Message": "Overloaded"}, {"ret": -1, "errmsg": "Overloaded"}])
def test_a_stream_of_nothing_but_a_description_of_an_error_is_the_error(payload: Any) -> None:
    events = stream()
    events.feed(event(payload))
    with pytest.raises(ModelAnswered, match="Overloaded"):
        events.end()


@pytest.mark.parametrize("mark", [b"data: [done]\n\n", b'data: "[DONE]"\n\n', b"event: end\ndata: bye\n\n"])
def test_after_a_whole_answer_anything_is_a_mark_of_the_end(mark: bytes) -> None:
    events = stream()
    events.feed(event(delta("a", "stop")) + mark)
    assert events.is_ended
    assert events.take() == [event(delta("a", "stop")), sse.DONE]
    with pytest.raises(ModelGarbled):
        stream().feed(event(delta("a")) + mark)


@pytest.mark.parametrize("name", [rb'"type"', rb'"\u0074ype"'])
def test_a_last_event_ends_the_stream_although_its_type_has_escapes(name: bytes) -> None:
    last = b"data: {" + name + rb': "response.\u0063ompleted", "response": {"output": []}}' + b"\n\n"
    events = stream()
    events.feed(last + event({"type": "late"}))
    assert events.is_ended
    assert events.take() == [last]


@pytest.mark.parametrize("kind", [{"message_stop": 1}, ["message_stop"], 5, None])
def test_a_type_that_is_no_text_is_no_last_event(kind: Any) -> None:
    events = stream()
    events.feed(event(delta("a") | {"type": kind}))
    assert not events.is_ended


def test_a_part_of_a_character_becomes_a_replacement_character() -> None:
    events = stream()
    events.feed(event(delta("a~")).replace(b"~", b"\xf0\x9f") + sse.DONE)
    assert events.take() == [event(delta("a~")).replace(b"~", "\ufffd".encode()), sse.DONE]


def test_a_response_gets_its_last_event_before_the_mark() -> None:
    text = event({"type": "response.output_text.delta", "output_index": 0, "delta": "hello"})
    events = stream()
    events.feed(text + sse.DONE)
    first, completed, mark = events.take()
    assert (first, mark, sse.name_of(completed)) == (text, sse.DONE, b"response.completed")
    assert events.is_ended


@pytest.mark.parametrize("body", [b'{"choices": []}', b' \n{\n\n"choices": [\n\n]}\n'])
def test_json_in_place_of_events_is_the_body(body: bytes) -> None:
    events = stream()
    events.feed(body)
    assert (events.take(), events.whole_body()) == ([], body)


def test_a_page_in_place_of_events_is_garbled() -> None:
    events = stream()
    events.feed(b"<html>\n\n<p>Sign in</p>")
    with pytest.raises(ModelGarbled):
        events.whole_body()


def test_an_event_with_half_a_character_passes_as_it_is() -> None:
    raw = [b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n', sse.DONE]
    events = stream()
    events.feed(b"".join(raw))
    assert events.take() == raw


@pytest.mark.parametrize("error", ["\ud83d", {"message": "\ud83d", "code": "not_found_error"}])
def test_an_error_with_a_half_of_a_character_is_the_error_of_the_model(error: object) -> None:
    answered = as_model_answered(error)
    assert answered.message == "\ufffd"
    assert answered.status == (502 if isinstance(error, str) else 404)
