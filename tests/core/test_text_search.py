"""Search for a text in requests and answers: told apart by bytes, as by reading them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.dialects.answer import text_or_json
from signoff.core.dialects.transcript import transcript
from signoff.core.text_search import TextSearch

LETTERS = 'aAbBkK19 ßſ\u212aéÉ中\\"\n'


def by_reading(text: str, body: bytes, response: bytes | None) -> bool:
    """Return what a search returns that reads all of every job."""
    wanted = text.casefold()
    said = [entry.text for entry in transcript(body)] + ([] if response is None else [text_or_json(response)])
    return any(wanted in each.casefold() for each in said)


def a_request(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]} | more


def an_answer(content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


@given(
    wanted=st.text(LETTERS, min_size=1, max_size=4),
    said=st.lists(st.text(LETTERS, max_size=6), min_size=1, max_size=3),
    is_escaped=st.booleans(),
    in_blocks=st.booleans(),
)
def test_bytes_tell_what_reading_tells(wanted: str, said: list[str], is_escaped: bool, in_blocks: bool) -> None:
    content: Any = [{"type": "text", "text": each} for each in said] if in_blocks else said[0]
    body = json.dumps(a_request(content, stop=said), ensure_ascii=is_escaped).encode()
    response = json.dumps(an_answer(content), ensure_ascii=is_escaped).encode()
    for request, answer in ((body, None), (b"{}", response), (body, response)):
        assert TextSearch(wanted).matches(request, answer) == by_reading(wanted, request, answer)


@pytest.mark.parametrize(
    ("wanted", "body", "response", "expected"),
    [
        ("DishWasher", a_request("my dishwasher leaks"), None, True),
        ("dish washer", a_request("my dishwasher leaks"), None, False),
        ("refund, now", a_request("x"), an_answer("A refund, now."), True),
        ("strasse", a_request("Hauptstra\u00dfe"), None, True),
        ("?!", a_request("What?!"), None, True),
        ("broken", None, None, True),
    ],
)
def test_a_text_is_found_without_regard_to_case(wanted: str, body: Any, response: Any, expected: bool) -> None:
    raw = b"{broken" if body is None else json.dumps(body).encode()
    assert TextSearch(wanted).matches(raw, None if response is None else json.dumps(response).encode()) is expected


def test_a_text_is_found_in_a_field_of_a_form() -> None:
    form = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nA red kite\r\n--b--\r\n'
    assert TextSearch("red kite").matches(encode_binary(BinaryBody("multipart/form-data; boundary=b", form)), None)
