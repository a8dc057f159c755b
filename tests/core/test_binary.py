"""Tests of non-JSON bodies in a JSON envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.binary import BinaryBody, decode_binary, describe_binary, encode_binary

HEADERS = encode_binary(BinaryBody("text/html\r\nset-cookie: a=b", b""))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), st.binary())
def test_a_binary_body_is_decoded_unchanged(kind: str, content: bytes) -> None:
    binary = BinaryBody(kind, content)
    assert decode_binary(encode_binary(binary)) == binary
    assert describe_binary(encode_binary(binary)) == f"{kind.partition(';')[0]}, {len(content)} bytes"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"parcel":', b'{"parcel":5}', b'{"parcel":{"content":"?"}}', b"\xff", HEADERS]
)
def test_a_body_that_is_not_an_envelope_is_decoded_as_none(body: bytes) -> None:
    assert decode_binary(body) is None
    assert describe_binary(body) is None
