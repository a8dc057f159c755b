"""Items of a list in a JSON object that comes in pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.json_items import MAX_DEPTH, ItemReader
from signoff.errors import BadBody, BadRequest, TooLarge

NAMES = st.one_of(st.sampled_from(["requests", "Requests", "a", '"', "\\", "[", "]},{"]), st.text(max_size=5))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=20,
)


def read(pieces: Sequence[bytes], max_bytes: int = 10_000_000) -> tuple[list[bytes], bytes]:
    """Return the items of `requests` and the rest of an object."""
    reader = ItemReader("requests", max_bytes)
    items = [item for piece in pieces for item in reader.feed(piece)]
    assert reader.count == len(items)
    return items, reader.end()


@given(
    st.dictionaries(NAMES, VALUES, max_size=3),
    st.none() | st.lists(VALUES, max_size=5),
    st.lists(st.integers(0, 1000), max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_an_object_in_pieces_gives_its_items_and_a_number_for_each(
    others: dict[str, Any], items: list[Any] | None, cuts: list[int], is_ascii: bool, indent: int | None
) -> None:
    whole = others if items is None else others | {"requests": items}
    text = json.dumps(whole, ensure_ascii=is_ascii, indent=indent).encode(errors="surrogatepass")
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    texts, rest = read([text[start:stop] for start, stop in itertools.pairwise(places)])
    expected = whole.get("requests")
    if isinstance(expected, list):
        assert [json.loads(item) for item in texts] == expected
        assert json.loads(rest) == whole | {"requests": [0] * len(expected)}
    else:
        assert (texts, json.loads(rest)) == ([], whole)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('{"requests": [{"a": 1, "a": 2.50}, {}]}', '{"requests": [0,0]}'),
        ('{"requests": [ \n ]}', '{"requests": [ \n ]}'),
        ('{"requests": [{},,{}]}', '{"requests": [0,,0]}'),
        ('{"requests": [{},]}', '{"requests": [0,]}'),
        ('{"requests": [{}}', '{"requests": [0}'),
        ('{"requests": [{}]', '{"requests": [0]'),
        ('{"requests": [{}, {"a', '{"requests": [0, {"a'),
        ('{"requests": [{}, "a\\', '{"requests": [0, "a\\'),
        ('{"a": {"requests": [1]}}', '{"a": {"requests": [1]}}'),
        ('[{"requests": [1]}]', '[{"requests": [1]}]'),
        ('{"requests": {"requests": [1]}}', '{"requests": {"requests": [1]}}'),
        ("]]}}[,", "]]}}[,"),
    ],
)
def test_what_is_beside_the_items_stays_as_it_was_written(text: str, rest: str) -> None:
    bytewise = [text[place : place + 1].encode() for place in range(len(text))]
    assert read([text.encode()])[1] == read(bytewise)[1] == rest.encode()


def test_an_item_is_returned_as_it_was_written() -> None:
    text = rb'{"requests": [ {"a": 1.0, "a": "\u0041,]}"} , [1e3]]}'
    assert read([text])[0] == [rb' {"a": 1.0, "a": "\u0041,]}"} ', b" [1e3]"]


def test_a_name_with_escapes_is_the_same_name() -> None:
    assert read([rb'{"reque\u0073ts": [1]}'])[0] == [b"1"]


def test_a_second_list_of_the_name_is_refused() -> None:
    with pytest.raises(BadRequest, match="must occur once"):
        read([b'{"requests": [1], "requests": [2]}'])


def test_an_item_and_the_rest_have_a_maximum_size() -> None:
    item = json.dumps("x" * 98).encode()
    assert len(read([b'{"requests": [' + b",".join([item] * 200) + b"]}"], max_bytes=100)[0]) == 200
    with pytest.raises(TooLarge, match=r"`requests.1`"):
        read([b'{"requests": [%b,%b ]}' % (item, item)], max_bytes=100)
    with pytest.raises(TooLarge, match="beside"):
        read([b'{"a": "' + b"x" * 100], max_bytes=100)


def test_an_object_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(BadBody, match="levels deep"):
        read([b'{"requests": [' + b"[" * MAX_DEPTH])
