"""Tests of the parsing of paths: which part of a path is the id of an object."""

from __future__ import annotations

import pytest

from signoff.core.api_paths import CHAT, COMPLETIONS, normalize_route, parse_route
from signoff.core.envelope import parse_envelope


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/audio/speech", None),
        ("/v1/images/edits", None),
        ("/v1/chat/completions", None),
        ("/v1/vector_stores", None),
        ("/v1/threads/runs", None),
        ("/v1/responses/input_tokens", None),
        ("/v1/realtime/client_secrets", None),
        ("/v1/fine_tuning/jobs", None),
        ("/v1/fine_tuning/alpha/graders/run", None),
        ("/v1/organization/usage/completions", None),
        ("/v1/things/make", None),
        ("/v1/things/a1", "a1"),
        ("/v1/things/mine/search", "mine"),
        ("/v1/responses/resp_1/cancel", "resp_1"),
        ("/v1/vector_stores/mynotes", "mynotes"),
        ("/v1/vector_stores/mynotes/search", "mynotes"),
        ("/v1/vector_stores/mynotes/files/file-1", "mynotes"),
        ("/v1/fine_tuning/jobs/mine/events", "mine"),
        ("/v1/Threads/mine", "mine"),
        ("/v1/images/img_1", "img_1"),
        ("/v1/chat/completions/chatcmpl-1/messages", "chatcmpl-1"),
        ("/v1/threads/mine/runs/run_1", "mine"),
        ("/v1/threads/runs/run_1", "run_1"),
    ],
)
def test_the_object_id_follows_its_collection(path: str, named: str | None) -> None:
    route = parse_route(path)
    assert named == (route and route.object_id)


@pytest.mark.parametrize("collection", ["models", "files", "batches", "uploads", "Files"])
@pytest.mark.parametrize("rest", ["", "/x1", "?limit=1", "/x1/content"])
@pytest.mark.parametrize("method", ["", "GET ", "DELETE "])
def test_collections_of_this_server_are_not_routed_upstream(collection: str, rest: str, method: str) -> None:
    assert parse_route(f"{method}/v1/{collection}{rest}") is None


def test_a_path_that_only_resembles_such_a_collection_is_routed_upstream() -> None:
    assert parse_route("/v1/files_of_mine") is not None
    assert parse_route("/v1/things/files") is not None


SPELLINGS = [
    "v1/chat/completions",
    "//v1//chat///completions//",
    "/openai/v1/chat/completions",
    "openai//v1/chat/completions/",
]


@pytest.mark.parametrize("path", [CHAT, *SPELLINGS])
def test_slashes_and_the_prefix_of_a_path_do_not_matter(path: str) -> None:
    assert normalize_route(path) == CHAT
    assert parse_envelope(b'{"path": "%s", "body": {}}' % path.encode()).path == CHAT


@pytest.mark.parametrize(
    ("route", "normal"),
    [
        ("GET v1//responses/resp_1/?a=//b/", "GET /v1/responses/resp_1?a=//b/"),
        ("DELETE /openai/v1/threads/t_1/", "DELETE /v1/threads/t_1"),
        ("/predict/", "/predict"),
        ("", "/"),
        ("/openai/", "/"),
        ("/v1/openai/", "/v1/openai"),
        ("POST /v1/x", "/POST /v1/x"),
        ("/v1/x\n//y", "/v1/x\n/y"),
    ],
)
def test_a_route_is_normalized(route: str, normal: str) -> None:
    assert normalize_route(route) == normal
    assert normalize_route(normal) == normal
    assert parse_envelope(b'{"path": "", "body": {}}').path == COMPLETIONS
