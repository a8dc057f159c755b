"""Tests of the ids of upstream objects that are stored."""

from __future__ import annotations

import json

import pytest

from signoff.core.upstream_objects import created_object_id, object_id_in_event


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
