"""Parsing of messages from a topic: hostile and malformed ones get an error that says which they are."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.api_paths import COMPLETIONS
from signoff.core.decode import BYTE_ORDER_MARK
from signoff.core.envelope import answer_message, parse_envelope
from signoff.core.job import Job
from signoff.errors import BadBody, BadRequest


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[}",
        b"null null",
        b"\xff",
        b"[" * 100_000,
        b'{"path": 5, ]',
        b'[1, "\xff"]',
        b'{"metadata": {"a": }}',
    ],
    ids=range(9),
)
def test_a_message_that_is_not_json_is_invalid_json(message: bytes) -> None:
    assert type(parse_envelope(message).error) is BadBody


@pytest.mark.parametrize(
    "message", [b"[]", b"null", b'"text"', b"7", b"[" * 500 + b"]" * 500, b'["' + b"x" * 10**6 + b'"]']
)
def test_json_that_is_not_an_object_is_a_bad_request(message: bytes) -> None:
    assert type(parse_envelope(message).error) is BadRequest


def test_metadata_that_can_be_read_are_kept_with_the_error() -> None:
    envelope = parse_envelope(b'{"metadata": {"n": 1}, "path": [], "body": {}}')
    assert type(envelope.error) is BadRequest
    assert envelope.metadata == b'{"n": 1}'


def test_a_byte_order_mark_before_a_message_is_ignored() -> None:
    message = b'{"metadata": {"n": 1}, "body": {"model": "m"}}'
    assert parse_envelope(BYTE_ORDER_MARK + message) == parse_envelope(message)


@pytest.mark.parametrize("path", ["", "/", "openai", "/openai/", "/openai/v1/completions"])
def test_a_path_without_an_endpoint_is_that_of_completions(path: str) -> None:
    assert parse_envelope(b'{"path": "%s", "body": {}}' % path.encode()).path == COMPLETIONS


def test_a_failed_job_without_an_error_has_the_code_of_the_http_api() -> None:
    job = Job(
        id="j",
        status="fail",
        door="topic",
        lane="later",
        user_id=0,
        token_id=0,
        target="m",
        model="m",
        path=COMPLETIONS,
        body=b"{}",
    )
    error = msgspec.json.decode(answer_message(job))["body"]["error"]
    assert error["code"] == "job_failed"
