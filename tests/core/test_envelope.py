"""Parsing of messages from a topic: hostile and malformed ones get an error that says which they are."""

from __future__ import annotations

import pytest

from signoff.core.envelope import parse_envelope
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
