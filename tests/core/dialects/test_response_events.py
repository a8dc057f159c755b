"""Completion of the events of a Responses stream: which item they belong to, and their positions in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.dialects import response_events
from signoff.core.dialects.response_events import EventCompleter

PART = {"type": "output_text", "text": ""}
CITATION = {"type": "url_citation", "url": "https://x", "title": "X", "start_index": 0, "end_index": 2}


def feed(completer: EventCompleter, kind: str, **members: Any) -> dict[str, Any]:
    """Return the completed event of this kind, whose name comes after `response.`."""
    event = f"data: {json.dumps({'type': f'response.{kind}'} | members)}\n\n".encode()
    return json.loads(sse.data_of(completer.feed(event)))


def completed_ids(completer: EventCompleter, *output: dict[str, Any]) -> list[str]:
    """Return the ids of the items of the whole response at the end of a stream."""
    event = feed(completer, "completed", response={"status": "completed", "output": output})
    return [item["id"] for item in event["response"]["output"]]


def test_a_message_without_an_id_does_not_get_the_id_of_reasoning_that_is_left_out() -> None:
    completer = EventCompleter("m", 7)
    ids = [feed(completer, "output_item.added", item={"type": kind})["item"]["id"] for kind in ("reasoning", "message")]
    assert completed_ids(completer, {"type": "message"}) == ids[1:]
    assert completed_ids(completer, {"type": "mcp_call"})[0] not in ids


def test_items_of_a_whole_response_have_ids_of_their_own() -> None:
    completer = EventCompleter("m", 7)
    feed(completer, "output_item.added", item={"type": "message", "id": "a"})
    feed(completer, "output_item.added", item={"type": "message"})
    feed(completer, "output_item.added", item={"type": "message"})
    feed(completer, "output_item.added", item={"type": "function_call", "call_id": "c", "id": "d"})
    call, message = {"type": "function_call", "call_id": "c"}, {"type": "message"}
    ids = completed_ids(completer, call, message, message, message | {"id": "a"})
    assert ids == ["d", "item_1", "item_2", "a"]


def test_an_item_whose_type_is_not_known_gives_its_id_to_one_of_any_type() -> None:
    completer = EventCompleter("m", 7)
    name = feed(completer, "new.delta", delta="x")["item_id"]
    assert completed_ids(completer, {"type": "message"}) == [name]


def test_an_item_whose_id_changes_in_each_event_stays_one_item() -> None:
    completer = EventCompleter("m", 7)
    feed(completer, "output_item.added", output_index=0, item={"type": "message", "id": "a"})
    parts = [feed(completer, "content_part.added", output_index=0, item_id=f"p{n}", part=PART) for n in range(3)]
    for number in range(100):
        feed(completer, "output_text.delta", output_index=0, item_id=f"d{number}", delta="x")
    assert [part["content_index"] for part in parts] == [0, 1, 2]
    assert (len(completer._items), len(completer._by_name)) == (1, 1)
    feed(completer, "output_item.done", output_index=0, item={"type": "message", "id": "b"})
    assert len(completer._items) == 1
    assert feed(completer, "reasoning_text.delta", item_id="r", output_index=0, delta="x")["content_index"] == 0
    assert len(completer._items) == 2


@pytest.mark.parametrize("members", [{}, {"item_id": "a7"}, {"output_index": 7}, {"item_id": "x", "output_index": 7}])
def test_an_event_looks_at_few_items_however_many_there_are(
    members: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[int]()

    class SeenItem(response_events._OutputItem):
        def __getattribute__(self, name: str) -> object:
            seen.add(id(self))
            return super().__getattribute__(name)

    monkeypatch.setattr(response_events, "_OutputItem", SeenItem)
    completer = EventCompleter("m", 7)
    for number in range(500):
        feed(completer, "output_item.added", item={"type": "message", "id": f"a{number}"})
    seen.clear()
    feed(completer, "output_text.delta", delta="x", **members)
    assert len(seen) <= 33


def test_annotations_are_numbered_by_item_and_part() -> None:
    completer, numbers = EventCompleter("m", 7), list[tuple[int, int, int]]()
    for _ in range(2):
        feed(completer, "output_item.added", item={"type": "message"})
        for _ in range(2):
            feed(completer, "content_part.added", part=PART)
            for _ in range(2):
                event = feed(completer, "output_text.annotation.added", annotation=CITATION)
                numbers.append((event["output_index"], event["content_index"], event["annotation_index"]))
    assert numbers == [(item, part, number) for item in (0, 1) for part in (0, 1) for number in (0, 1)]
    given = feed(completer, "output_text.annotation.added", annotation=CITATION, annotation_index=5)
    assert given["annotation_index"] == 5


def test_a_null_counts_as_missing() -> None:
    completer = EventCompleter("m", 7)
    nulls = dict.fromkeys(("sequence_number", "output_index", "item_id", "content_index", "annotation_index"))
    event = feed(completer, "output_text.annotation.added", annotation=CITATION, **nulls)
    assert [event[name] for name in nulls] == [0, 0, "item_0", 0, 0]
    text = feed(completer, "output_text.delta", delta="x", content_index=None, logprobs=None)
    assert (text["content_index"], text["logprobs"]) == (0, [])
    assert feed(completer, "reasoning_summary_text.delta", delta="x", summary_index=None)["summary_index"] == 0


@pytest.mark.parametrize("index", ["1", [1], {}])
def test_a_position_that_is_no_number_counts_as_missing(index: object) -> None:
    assert feed(EventCompleter("m", 7), "output_text.delta", delta="x", output_index=index)["output_index"] == 0
