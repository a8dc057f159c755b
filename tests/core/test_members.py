"""Tests of the one reading of JSON bodies: what other parsers could read in another way is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.members import READ_MEMBERS, read_members
from signoff.errors import BadRequest


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"free","model":"held"}',
        '{"model":"free","Model":"held"}',
        '{"model":"free","MODEL":"held"}',
        '{"Model":"held"}',
        '{"model":"free","mod\\u0065l":"held"}',
        '{"model":"free","\\u004dodel":"held"}',
        '{"stream":false,"\u017ftream":true}',
        '{"stream":false,"\\u017ftream":true}',
        '{"stream":false,"stream":true}',
        '{"model":"free","messages":[{"model":"x"}],"model":{"a":"model"}}',
        '{"previous_response_id":"mine","Previous_Response_Id":"theirs"}',
        '{"previous_response_\u0131d":"theirs"}',
        '{"conversation":"mine","conversation":"theirs"}',
        '{"n":1,"N":9}',
        '{"best_of":1,"best_of":9}',
        '{"a":1,"\\u0061' + "x" * 93 + "\u00e9" * 9 + '":2}',
        '{"max_tokens":1,"max_tokens":9}',
        '{"messages":[{"role":"user","content":"shown"}],"messages":[{"role":"user","content":"hidden"}]}',
        '{"prompt":"shown","Prompt":"hidden"}',
        '{"parcel":{"content_type":"multipart/form-data","content":""}}',
    ],
)
def test_a_body_that_parsers_read_differently_is_refused(body: str) -> None:
    with pytest.raises(BadRequest):
        read_members(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","messages":[{"role":"user","content":"\\"model\\": x"}]}',
        '{"model":"m","tools":[{"properties":{"model":{"type":"string"},"Model":1,"stream":2}}]}',
        '{"model":"model","input":"\\u0041\\u006d"}',
        '{"model":"m","input":"caf\\u00e9 \\"\\u0041\\":"}',
        '{"X":1,"model":"m","\u00e9":2}',
        '["model","model"]',
        '"model"',
        "null",
        "{}",
        '{"parcel":{"content_type":"audio/wav","content":""}}',
    ],
)
def test_any_other_body_is_accepted(body: str) -> None:
    read_members(body.encode())


def written(members: list[tuple[str, str]]) -> str:
    return (
        "{"
        + ", ".join(f"{json.dumps(name, ensure_ascii=len(value) % 2 == 0)}: {value}" for name, value in members)
        + "}"
    )


NAMES = st.sampled_from(
    ["model", "Model", "MODEL", "stream", "\u017ftream", "Stream", "n", "N", "messages", "x", "\u00e9"]
)
VALUES = st.recursive(
    st.sampled_from(['"model"', "1", "null", '"a \\"model\\": b"', '"\\u0041"', '"\\\\"', '"caf\\u00e9"']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(NAMES, inner), max_size=3).map(written),
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6).map(written), st.data())
def test_a_body_is_accepted_exactly_if_each_member_that_is_read_occurs_once(body: str, data: st.DataObject) -> None:
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list)
    spellings = [name for name, _ in pairs if name.casefold() in READ_MEMBERS]
    is_clear = len(set(spellings)) == len(spellings) and all(name in READ_MEMBERS for name in spellings)
    if len({name for name, _ in pairs}) == len(pairs) and is_clear:
        read_members(body.encode())
    elif not is_clear:  # a doubled member that is not read may be refused too
        with pytest.raises(BadRequest):
            read_members(body.encode())
    # and a name that is written with an escape never hides a member
    name = data.draw(st.sampled_from(["model", "stream", "n"]))
    index = data.draw(st.integers(0, len(name) - 1))
    escaped = f'"{name[:index]}\\u{ord(name[index]):04x}{name[index + 1 :]}": 1'
    with pytest.raises(BadRequest):
        read_members(f"{body[:-1]}{', ' if pairs else ''}{escaped}}}".encode())
