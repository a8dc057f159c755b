"""Blocks of requests that become chats: each type of the official clients arrives in the chat, or is refused.

Texts of the samples that say something to the model contain MARK, so that one that is lost is seen.
"""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import pytest
from anthropic.types import (
    ContentBlockParam,
    document_block_param,
    image_block_param,
    search_result_block_param,
    tool_result_block_param,
)
from openai.types.chat import chat_completion_content_part_param
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseInputAudioParam,
    ResponseInputItemParam,
    response_function_call_output_item_param,
    response_input_content_param,
    response_output_message_param,
)

from signoff.core.dialects import messages_to_chat, responses_to_chat
from signoff.errors import BadRequest

CHAT_PARTS = {"text", "image_url", "input_audio", "file"}


def types_of(*kinds: Any) -> set[str]:
    """Return the values of `type` in unions of the official clients."""
    return {
        value
        for kind in kinds
        for each in (typing.get_args(kind) or [kind])
        for value in _literals(typing.get_type_hints(each)["type"])
    }


def _literals(kind: Any) -> set[str]:
    """Return the texts of a literal, which may be optional."""
    return {text for each in typing.get_args(kind) for text in ([each] if isinstance(each, str) else _literals(each))}


def marks(value: Any) -> set[str]:
    """Return the marked texts in a value."""
    return set(re.findall(r"MARK\w*", json.dumps(value)))


TEXT = {"type": "text", "text": "MARK_text"}
MORE = {"type": "text", "text": " and MARK_more"}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "MARKpixel"}
DOCUMENT = {"type": "document", "title": "MARK_title", "context": "MARK_context"}
IMAGE_SOURCES: dict[str, Any] = {
    "base64": PIXEL,
    "url": {"type": "url", "url": "https://x/MARK_url.png"},
    "file": {"type": "file", "file_id": "MARK_file"},
}
DOCUMENT_SOURCES: dict[str, Any] = {
    "base64": {"type": "base64", "media_type": "application/pdf", "data": "MARKpdf"},
    "text": {"type": "text", "media_type": "text/plain", "data": "MARK_plain"},
    "content": {"type": "content", "content": [TEXT, {"type": "image", "source": PIXEL}]},
    "url": {"type": "url", "url": "https://x/MARK_url.pdf"},
    "file": {"type": "file", "file_id": "MARK_file"},
}
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "text": [TEXT],
    "image": [{"type": "image", "source": source} for source in IMAGE_SOURCES.values()],
    "document": [
        *(DOCUMENT | {"source": source} for source in DOCUMENT_SOURCES.values()),
        DOCUMENT | {"source": {"type": "content", "content": "MARK_whole"}},
        DOCUMENT | {"source": {"type": "content", "content": [{"type": "audio", "data": "MARK_audio"}]}},
    ],
    "search_result": [
        {"type": "search_result", "title": "MARK_title", "source": "MARK_source", "content": [TEXT, MORE]},
        {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "image", "source": PIXEL}]},
    ],
    "thinking": [{"type": "thinking", "thinking": "MARK_thought", "signature": "s"}],
    "redacted_thinking": [{"type": "redacted_thinking", "data": "MARK_thought"}],
    "tool_use": [{"type": "tool_use", "id": "MARK_id", "name": "MARK_name", "input": {"x": "MARK_input"}}],
    "tool_result": [{"type": "tool_result", "tool_use_id": "MARK_id", "content": [TEXT]}],
    "server_tool_use": [{"type": "server_tool_use", "id": "t", "name": "web_search", "input": {"query": "MARK_query"}}],
    "container_upload": [{"type": "container_upload", "file_id": "MARK_file"}],
    "tool_reference": [{"type": "tool_reference", "tool_name": "MARK_name"}],
    "browser_state": [{"type": "browser_state", "tabs": [{"title": "MARK_title"}]}],
} | {
    kind: [{"type": kind, "tool_use_id": "t", "content": [{"type": "x", "text": "MARK_result"}], "text": "MARK_result"}]
    for kind in (
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
    )
}
# Types that become a part of a chat, by the place of the block.
TRANSLATED_BLOCKS = {
    "user": {"text", "image", "document", "search_result", "tool_result"},
    "tool_result": {"text", "image", "document", "search_result"},
    "assistant": {"text", "tool_use"},
    "system": {"text"},
    "system message": {"text"},
}
THOUGHTS = {"thinking", "redacted_thinking"}
REFUSED_SOURCES = {"MARK_file", "MARK_audio"}


def request_with(block: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a request for a message with a block at a place."""
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    turns: dict[str, list[Any]] = {
        "user": [{"role": "user", "content": [block]}],
        "tool_result": [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [block]}]},
        ],
        "assistant": [{"role": "assistant", "content": [block]}],
        "system": [{"role": "user", "content": "Hi"}],
        "system message": [{"role": "system", "content": [block]}],
    }
    request = {"model": "m", "max_tokens": 5, "messages": turns[place]}
    return request | ({"system": [block]} if place == "system" else {})


def chat_of_message(request: dict[str, Any]) -> dict[str, Any]:
    return json.loads(messages_to_chat.to_chat(json.dumps(request).encode(), "m"))


def check_parts(chat: dict[str, Any]) -> None:
    """Check that tool messages and those of the assistant are texts, and that all parts are those of a chat."""
    for message in chat["messages"]:
        if message["role"] in {"tool", "assistant", "system"}:
            assert isinstance(message["content"], str | None)
        elif isinstance(message["content"], list):
            assert {part["type"] for part in message["content"]} <= CHAT_PARTS


def test_all_types_of_the_official_clients_are_checked() -> None:
    assert types_of(ContentBlockParam, tool_result_block_param.Content) == BLOCKS.keys()
    assert types_of(document_block_param.Source) == DOCUMENT_SOURCES.keys()
    assert types_of(image_block_param.Source) == IMAGE_SOURCES.keys()
    hints = typing.get_type_hints(search_result_block_param.SearchResultBlockParam)
    assert types_of(*typing.get_args(hints["content"])) == {"text"}
    assert types_of(ResponseInputItemParam) == ITEMS.keys() | {"message"}
    assert "message" in types_of(EasyInputMessageParam)
    inputs = (
        response_input_content_param.ResponseInputContentParam,
        response_function_call_output_item_param.ResponseFunctionCallOutputItemParam,
        ResponseInputAudioParam,
        response_output_message_param.Content,
    )
    assert types_of(*inputs) == PARTS.keys()
    assert types_of(chat_completion_content_part_param.ChatCompletionContentPartParam) == CHAT_PARTS


@pytest.mark.parametrize("place", TRANSLATED_BLOCKS)
@pytest.mark.parametrize(
    ("kind", "block"), [pytest.param(kind, block, id=kind) for kind, blocks in BLOCKS.items() for block in blocks]
)
def test_a_block_of_a_message_is_in_the_chat_or_refused(kind: str, block: dict[str, Any], place: str) -> None:
    request = request_with(block, place)
    if place == "assistant" and kind in THOUGHTS:
        assert not marks(chat_of_message(request))  # as no chat takes thoughts
        return
    is_url_of_document = kind == "document" and block["source"]["type"] == "url"
    has_image_in_result = kind == "search_result" and "MARKpixel" in marks(block)
    is_refused_source = bool(marks(block) & REFUSED_SOURCES) or is_url_of_document or has_image_in_result
    if kind in TRANSLATED_BLOCKS[place] and not is_refused_source:
        chat = chat_of_message(request)
        assert marks(chat) == marks(block)
        check_parts(chat)
        return
    name = "`system`" if place == "system" else "`messages`"
    with pytest.raises(BadRequest, match=f"{name}.*; (remove|send)"):
        chat_of_message(request)


IMAGE = {"type": "input_image", "image_url": "https://x/MARK_image.png", "detail": "low"}
PARTS: dict[str, list[dict[str, Any]]] = {
    "input_text": [{"type": "input_text", "text": "MARK_text"}],
    "output_text": [{"type": "output_text", "text": "MARK_text", "annotations": []}],
    "refusal": [{"type": "refusal", "refusal": "MARK_refusal"}],
    "input_image": [IMAGE, {"type": "input_image", "file_id": "MARK_file"}],
    "input_file": [
        {"type": "input_file", "filename": "MARK_name", "file_data": "data:application/pdf;base64,MARKpdf"},
        {"type": "input_file", "file_id": "MARK_file"},
        {"type": "input_file", "file_url": "https://x/MARK_url.pdf"},
    ],
    "input_audio": [{"type": "input_audio", "input_audio": {"data": "MARKaudio", "format": "wav"}}],
}
REFUSED_MARKS = {"MARK_file", "MARK_url"}
ITEMS: dict[str, dict[str, Any]] = {
    "function_call": {"call_id": "MARK_id", "name": "MARK_name", "arguments": '{"x": "MARK_input"}'},
    "function_call_output": {"call_id": "MARK_id", "output": "MARK_output"},
    "reasoning": {"id": "r", "summary": [{"type": "summary_text", "text": "MARK_thought"}]},
    "item_reference": {"id": "MARK_id"},
} | {
    kind: {"id": "i", "call_id": "MARK_id", "output": "MARK_output", "result": "MARK_result"}
    for kind in types_of(ResponseInputItemParam)
    - {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
}


def chat_of_input(*items: dict[str, Any]) -> dict[str, Any]:
    return json.loads(responses_to_chat.to_chat(json.dumps({"model": "m", "input": items}).encode(), "m"))


@pytest.mark.parametrize("kind", sorted(ITEMS))
def test_an_item_of_an_input_is_in_the_chat_or_refused(kind: str) -> None:
    item = {"type": kind} | ITEMS[kind]
    if kind in {"function_call", "function_call_output"}:
        assert marks(chat_of_input(item)) == marks(item)
    elif kind == "reasoning":
        assert not marks(chat_of_input(item))  # as no chat takes thoughts
    else:
        with pytest.raises(BadRequest, match=f"'{kind}' of `input`.*; remove"):
            chat_of_input(item)


@pytest.mark.parametrize("place", ["user", "assistant", "output"])
@pytest.mark.parametrize("part", [part for parts in PARTS.values() for part in parts])
def test_a_part_of_an_input_is_in_the_chat_or_refused(part: dict[str, Any], place: str) -> None:
    item: dict[str, Any] = {"role": place, "content": [part]}
    if place == "output":
        item = {"type": "function_call_output", "call_id": "c", "output": [part]}
    is_text = part["type"] in {"input_text", "output_text", "refusal"}
    if marks(part) & REFUSED_MARKS or (place == "assistant" and not is_text):
        with pytest.raises(BadRequest, match=f"'{part['type']}' .*`input`.*; (send|remove)"):
            chat_of_input(item)
        return
    chat = chat_of_input(item)
    assert marks(chat) == marks(part)
    check_parts(chat)


def test_images_in_results_of_tools_follow_all_results_of_the_turn() -> None:
    def output(call_id: str, *parts: dict[str, Any]) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": call_id, "output": list(parts)}

    def call(call_id: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}

    text = {"type": "input_text", "text": "This:"}
    thought = {"type": "reasoning", "summary": []}
    one, two, three = ({"type": "input_image", "image_url": f"https://x/{number}.png"} for number in range(3))
    items = [call("a"), call("b"), output("a", text, one), thought, output("b", two), call("c"), output("c", three)]
    messages = chat_of_input(*items)["messages"]
    assert [message["role"] for message in messages] == [
        "assistant",
        "tool",
        "tool",
        "user",
        "assistant",
        "tool",
        "user",
    ]
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["This:", "", ""]
    addresses = [[part["image_url"]["url"][-5:] for part in messages[index]["content"]] for index in (3, 6)]
    assert addresses == [["0.png", "1.png"], ["2.png"]]
    assert chat_of_input(*items[:3], {"role": "user", "content": "So?"})["messages"][-1]["content"] == "So?"


def test_results_of_tools_in_several_messages_of_a_user_follow_each_other() -> None:
    def use(call_id: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": call_id, "name": "f", "input": {}}

    def result(call_id: str) -> dict[str, Any]:
        image = {"type": "image", "source": {"type": "url", "url": f"https://x/{call_id}"}}
        return {"type": "tool_result", "tool_use_id": call_id, "content": [TEXT, image]}

    turns: list[Any] = [
        {"role": "assistant", "content": [use("a"), use("b")]},
        {"role": "user", "content": [result("a")]},
        {"role": "user", "content": [result("b"), {"type": "text", "text": "So?"}]},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "Why?"},
    ]
    messages = chat_of_message({"model": "m", "max_tokens": 5, "messages": turns})["messages"]
    roles = ["assistant", "tool", "tool", "user", "user", "assistant", "user"]
    assert [message["role"] for message in messages] == roles
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == ["a", "b"]
    assert [[part["type"] for part in message["content"]] for message in messages[3:5]] == [
        ["image_url"],
        ["image_url", "text"],
    ]


def test_texts_of_several_results_of_a_search_stay_apart() -> None:
    results = [{"type": "search_result", "title": title, "source": "S", "content": [TEXT]} for title in "AB"]
    (message,) = chat_of_message(
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": results}]}]}
    )["messages"]
    assert message["content"] == "A\nS\nMARK_text\nB\nS\nMARK_text"


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"type": "function", "id": "c", "function": {"name": "f", "arguments": '{"x":1}'}}, '{"x":1}'),
        ({"type": "custom", "id": "c", "custom": {"name": "f", "input": "x = 1"}}, "x = 1"),
    ],
)
def test_a_call_of_a_chat_is_in_the_answer_whole_and_as_a_stream(call: dict[str, Any], arguments: str) -> None:
    request = b'{"model": "m", "input": "Hi"}'
    chat = json.dumps({"choices": [{"message": {"content": None, "tool_calls": [call]}}]}).encode()
    (item,) = json.loads(responses_to_chat.from_chat(chat, "n", "m", request))["output"]
    assert (item["call_id"], item["name"], item["arguments"]) == ("c", "f", arguments)
    stream = responses_to_chat.ResponseTranslator("n", "m", request, 7)
    delta = {"choices": [{"delta": {"tool_calls": [{"index": 0} | call]}}]}
    events = [*stream.feed(b"data: " + json.dumps(delta).encode() + b"\n\n"), *stream.finish()]
    (streamed,) = json.loads(events[-1].split(b"data: ")[1])["response"]["output"]
    assert streamed == item
    (block,) = json.loads(messages_to_chat.from_chat(chat, "n", "m"))["content"]
    assert (block["id"], block["name"]) == ("c", "f")
    assert block["input"] == ({"x": 1} if call["type"] == "function" else {"arguments": "x = 1"})
