"""Tests of forms: fields are read and changed in place, and forms that parsers read differently are refused."""

from __future__ import annotations

import email
import email.policy
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import parse_form

from signoff.core.binary import BinaryBody
from signoff.core.form import fields_of, with_field
from signoff.errors import BadRequest

FORM = "multipart/form-data; boundary=b1"


def form(*parts: tuple[str, bytes], boundary: bytes = b"b1") -> bytes:
    encoded = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head.encode(), content) for head, content in parts]
    return b"".join(encoded) + b"--" + boundary + b"--\r\n"


def form_part(name: str, content: bytes, more: str = "") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"{more}', content


FILE = form_part("file", b"\r\nname=model\r\n\r\nwrong\r\n--b", '; filename="name=model"\r\nContent-Type: audio/wav')


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (FORM, b"b1"),
        ('multipart/form-data; boundary="b1"', b"b1"),
        (
            "multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        ("Multipart/Form-Data; charset=utf-8; Boundary=simple", b"simple"),
    ],
)
def test_a_form_field_is_read_and_changed_and_nothing_else_is(kind: str, boundary: bytes) -> None:
    before = form(FILE, form_part("model", b"mine"), form_part("prompt", b"mine"), boundary=boundary)
    after = form(FILE, form_part("model", b"theirs"), form_part("prompt", b"mine"), boundary=boundary)
    binary = BinaryBody(kind, before)
    assert fields_of(binary) == {"model": "mine"}
    assert with_field(binary, "model", "theirs") == after
    assert with_field(binary, "model", "mine") == before
    assert with_field(binary, "wrong", "x") == before


def test_part_headers_without_quotes_or_with_more_lines_are_read() -> None:
    head = "X: y\r\ncontent-disposition: form-data; name=model\r\nContent-Length: 4"
    assert fields_of(BinaryBody(FORM, form((head, b"mine")))) == {"model": "mine"}


def test_a_body_of_another_type_has_no_fields() -> None:
    binary = BinaryBody("audio/wav", form(form_part("model", b"mine")))
    assert fields_of(binary) == {}
    assert with_field(binary, "model", "theirs") == binary.content


MODEL = form_part("model", b"free")
DECOY = form(MODEL, boundary=b"YY")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        # two fields, and one in other letters
        (FORM, form(MODEL, form_part("model", b"held"))),
        (FORM, form(MODEL, form_part("Model", b"held"))),
        (FORM, form(form_part("MODEL", b"held"))),
        (FORM, form(MODEL, form_part("model ", b"held"))),
        (FORM, form(MODEL, form_part("\u017ftream", b"true"))),
        (FORM, form(form_part("stream", b"false"), form_part("stream", b"true"))),
        # two boundaries, or none
        ("multipart/form-data; xboundary=YY; boundary=b1", DECOY + form(MODEL)),
        ("multipart/form-data; boundary=YY; boundary=b1", form(MODEL)),
        ("multipart/form-data; boundary=b1; Boundary=YY", form(MODEL)),
        ("multipart/form-data; boundary*=utf-8''b1", form(MODEL)),
        ('multipart/form-data; boundary="b1\\""', form(MODEL)),
        ("multipart/form-data", form(MODEL)),
        ("multipart/mixed; boundary=b1", form(MODEL)),
        # text before, after and between
        (FORM, b"hello\r\n" + form(MODEL)),
        (FORM, b"\r\n" + form(MODEL)),
        (FORM, form(MODEL) + b"--b1\r\n"),
        (FORM, form(form_part("file", b'\r\n--b1 \r\nContent-Disposition: form-data; name="model"\r\n\r\nheld'))),
        (FORM, form(form_part("file", b'\n--b1\nContent-Disposition: form-data; name="model"\n\nheld'))),
        # part headers that parsers read differently
        (FORM, form(('Content-Disposition: form-data; name="x"; name="model"', b"held"))),
        (FORM, form(("Content-Disposition: form-data; name=\"x\"; name*=utf-8''model", b"held"))),
        (FORM, form(('Content-Disposition: form-data; filename="a\\"; name="model"', b"held"))),
        (FORM, form(('Content-Disposition: form-data; name="mod\\el"', b"held"))),
        (FORM, form(('Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"', b""))),
        (FORM, form(("Content-Type: text/plain", b"held"))),
        # broken
        (FORM, b""),
        (FORM, b"--b1"),
        (FORM, b'--b1\r\nContent-Disposition: form-data; name="model"\r\n--b1--'),
        (FORM, b'--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\nmine'),
        (FORM, b'--b1\nContent-Disposition: form-data; name="model"\n\nmine\n--b1--\n'),
    ],
)
def test_a_form_that_parsers_read_differently_is_refused(kind: str, content: bytes) -> None:
    with pytest.raises(BadRequest):
        fields_of(BinaryBody(kind, content))


PIECES = st.lists(
    st.sampled_from(
        [
            b"--b1",
            b"--b1--",
            b"\r\n",
            b"\n",
            b" ",
            b"\r\n\r\n",
            b'Content-Disposition: form-data; name="model"',
            b'content-disposition: form-data; name="file"; filename="m"',
            b"Content-Type: text/plain",
            b"free",
            b"held",
            b'; name="model"',
        ]
    ),
    max_size=24,
).map(b"".join)
FIELDS = st.lists(
    st.tuples(st.sampled_from(["model", "Model", "stream", "file", "prompt"]), PIECES), min_size=1, max_size=4
).map(lambda fields: form(*(form_part(name, content) for name, content in fields)))


@given(st.one_of(PIECES, FIELDS, st.tuples(PIECES, FIELDS).map(b"".join), st.tuples(FIELDS, PIECES).map(b"".join)))
def test_other_parsers_read_the_same_fields_from_a_form_that_is_accepted(content: bytes) -> None:
    try:
        fields = fields_of(BinaryBody(FORM, content))
    except BadRequest:
        return
    assert (
        models_by_email(content)
        == models_by_library(content)
        == [value for name, value in fields.items() if name == "model"]
    )


def models_by_email(content: bytes) -> list[str]:
    """Return the values of all fields `model`, whatever their case, as the standard library reads the form."""
    message = email.message_from_bytes(f"Content-Type: {FORM}\r\n\r\n".encode() + content, policy=email.policy.HTTP)
    return [
        part.get_payload(decode=True).decode()
        for part in message.iter_parts()
        if (part.get_param("name", header="content-disposition") or "").lower() == "model"
    ]


def models_by_library(content: bytes) -> list[str]:
    fields = list[tuple[bytes, bytes]]()
    parse_form(
        {"Content-Type": FORM.encode()},
        io.BytesIO(content),
        lambda field: fields.append((field.field_name or b"", field.value or b"")),
        lambda _file: None,
    )
    return [value.decode() for name, value in fields if name.lower() == b"model"]
