"""Tests of non-JSON bodies in a JSON envelope, and of reading and changing form fields without parsing files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.binary import BinaryBody, decode_binary, describe_binary, encode_binary, form_field, with_form_field

FORM = 'multipart/form-data; boundary="b 1"'


def form(*parts: tuple[str, bytes], boundary: bytes = b"b 1") -> bytes:
    encoded = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head.encode(), content) for head, content in parts]
    return b"".join(encoded) + b"--" + boundary + b"--\r\n"


def form_part(name: str, content: bytes, more: str = "") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"{more}', content


HEADERS = encode_binary(BinaryBody("text/html\r\nset-cookie: a=b", b""))
FILE = form_part("file", b"\r\nname=model\r\n\r\nwrong\r\n--b", '; filename="name=model"\r\nContent-Type: audio/wav')


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


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (FORM, b"b 1"),
        ("multipart/form-data; boundary=simple", b"simple"),
        ("Multipart/Form-Data; charset=utf-8; Boundary=simple; x=y", b"simple"),
    ],
)
def test_a_form_field_is_read_and_changed_and_nothing_else_is(kind: str, boundary: bytes) -> None:
    before = form(FILE, form_part("model", b"mine"), form_part("prompt", b"mine"), boundary=boundary)
    after = form(FILE, form_part("model", b"theirs"), form_part("prompt", b"mine"), boundary=boundary)
    binary = BinaryBody(kind, before)
    assert form_field(binary, "model") == "mine"
    assert with_form_field(binary, "model", "theirs").content == after
    assert with_form_field(binary, "model", "mine") is binary
    assert form_field(binary, "wrong") is None
    assert with_form_field(binary, "wrong", "x") is binary


def test_part_headers_without_quotes_or_with_more_lines_are_read() -> None:
    head = "X: y\r\ncontent-disposition: form-data; name=model\r\nContent-Length: 4"
    assert form_field(BinaryBody(FORM, form((head, b"mine"))), "model") == "mine"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (FORM, b""),
        (FORM, b"--b 1"),
        (FORM, b"--b 1--"),
        (FORM, b'--b 1\r\nContent-Disposition: form-data; name="model"\r\n--b 1--'),
        (FORM, b'--b 1\r\nContent-Disposition: form-data; name="model"\r\n\r\nmine'),
        ("multipart/form-data", form(form_part("model", b"mine"))),
        ("text/plain; boundary=b 1", form(form_part("model", b"mine"))),
        (FORM, form(form_part("model[]", b"mine"))),
    ],
)
def test_a_broken_form_has_no_fields(kind: str, content: bytes) -> None:
    assert form_field(BinaryBody(kind, content), "model") is None


@given(st.binary())
def test_any_bytes_can_be_searched_for_a_field(content: bytes) -> None:
    binary = BinaryBody(FORM, b"--b 1\r\n" + content)
    assert with_form_field(binary, "model", form_field(binary, "model") or "") is binary or b"model" in content
