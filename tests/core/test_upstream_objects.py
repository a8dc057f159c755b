"""Tests of the ids of upstream objects that are stored."""

from __future__ import annotations

import json

import pytest

from signoff.core.api_paths import Route
from signoff.core.upstream_objects import (
    created_object_id,
    ids_in_answer,
    ids_in_route,
    object_id_in_event,
    referenced_ids,
)


@pytest.mark.parametrize(
    ("name", "stored_id"),
    [("resp_1", "resp_1"), ("", None), (None, None), ("resp\0", None), ("a\nb", None), ("x" * 256, None)],
)
def test_an_unusable_id_is_not_stored(name: str | None, stored_id: str | None) -> None:
    assert created_object_id("/v1/responses", json.dumps({"id": name}).encode()) == stored_id
    assert object_id_in_event(json.dumps({"response": {"id": name}}).encode()) == stored_id


@pytest.mark.parametrize(("container", "stored_id"), [(None, None), ({"id": "container_1"}, "msg_1")])
def test_a_message_is_an_object_only_if_it_has_a_container(container: object, stored_id: str | None) -> None:
    assert created_object_id("/v1/messages", json.dumps({"id": "msg_1", "container": container}).encode()) == stored_id


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("/v1/threads/t1/runs/r1/steps", {"t1", "r1"}),
        ("/v1/vector_stores/a/files/b/content", {"a", "b"}),
        ("/v1/threads/runs", set[str]()),
        ("/v1/images/variants", set[str]()),
    ],
)
def test_every_id_of_a_path_counts_however_short(path: str, ids: set[str]) -> None:
    assert ids_in_route(Route("GET", path, None)) == ids


def test_a_parameter_of_the_query_that_refers_to_an_object_names_it_however_short_its_id() -> None:
    query = "assistant_id=a1&file_ids[]=f1&file_ids%5B%5D=f2&conversation=&limit=20&order=desc&after=conv_1"
    assert ids_in_route(Route("GET", "/v1/threads", query)) == {"a1", "f1", "f2", "conv_1"}


@pytest.mark.parametrize(
    "body",
    [
        {"thread_id": "t 1"},
        {"tools": [{"type": "file_search", "vector_store_ids": ["x", "t 1"]}]},
        {"tools": [{"type": "code_interpreter", "container": "t 1"}]},
        {"tool_resources": {"code_interpreter": {"file_ids": ["t 1"]}}},
        {"conversation": {"id": "t 1"}},
        {"input": [{"content": [{"type": "input_file", "file_id": "t 1"}]}]},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("is_escaped", [False, True], ids=["plain", "escaped"])
def test_a_member_that_refers_to_an_object_names_it_however_short_its_id(
    body: dict[str, object], *, is_escaped: bool
) -> None:
    text = json.dumps(body)
    if is_escaped:
        text = text.replace("_", "\\u005f").replace("con", "\\u0063on").replace("t 1", "\\u0074 1")
    assert "t 1" in referenced_ids(text.encode())


@pytest.mark.parametrize(
    "body",
    [
        {"id": "1"},
        {"call_id": "1"},
        {"file_id": None},
        {"thread_id": 1},
        {"user": "1"},
        {"text": '"thread_id":"1"'},
        [1],
    ],
    ids=str,
)
def test_other_short_texts_and_names_of_members_are_no_ids(body: object) -> None:
    assert referenced_ids(json.dumps(body).encode()) == set()


def test_short_ids_of_containers_and_files_in_an_answer_count() -> None:
    answer = b'{"id": "short", "output": [{"container_id": "c1", "annotations": [{"file_id": "f1"}]}]}'
    assert ids_in_answer(answer, b"{}") == {"c1", "f1"}
