"""What a token is, and what tells two requests apart."""

from __future__ import annotations

import hashlib
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.api_tokens import ALPHABET, PREFIX, SECRET_LENGTH, digest, digests_equal, format_token, is_well_formed
from signoff.core.fingerprint import fingerprint

SECRETS = st.text(ALPHABET, min_size=SECRET_LENGTH, max_size=SECRET_LENGTH)


def test_a_token_has_a_known_form() -> None:
    # a token that somebody holds must stay valid in every later version
    assert format_token("0123456789ABCDEFGHIJKLMNOPQRSTUV") == "sg_0123456789ABCDEFGHIJKLMNOPQRSTUV1ggZdL"


def test_a_secret_has_at_least_160_bits() -> None:
    assert len(set(ALPHABET)) == 62
    assert SECRET_LENGTH * math.log2(len(set(ALPHABET))) >= 160


@settings(deadline=None)
@given(SECRETS)
def test_a_token_is_well_formed_and_safe_in_any_header_or_address(secret: str) -> None:
    token = format_token(secret)
    assert is_well_formed(token)
    assert token.startswith(PREFIX)
    assert len(token) == 41
    assert set(token) <= set(string.ascii_letters + string.digits + "_")


@settings(max_examples=20, deadline=None)
@given(SECRETS)
def test_one_wrong_character_is_always_noticed(secret: str) -> None:
    token = format_token(secret)
    for place, right in enumerate(token):
        for wrong in ALPHABET + "_- é":
            assert is_well_formed(token[:place] + wrong + token[place + 1 :]) is (wrong == right)


@settings(deadline=None)
@given(SECRETS, st.integers(0, 40), st.text(min_size=1, max_size=3))
def test_what_is_too_long_or_too_short_is_noticed(secret: str, place: int, more: str) -> None:
    token = format_token(secret)
    assert not is_well_formed(token[:place] + more + token[place:])
    assert not is_well_formed(token[:place])
    assert not is_well_formed(token.swapcase())


@settings(deadline=None)
@given(st.text() | st.text(min_size=38, max_size=38).map(PREFIX.__add__))
def test_no_text_at_all_breaks_the_look_at_it(text: str) -> None:
    assert not is_well_formed(text)


@pytest.mark.parametrize("text", ["", PREFIX, "sg_\ud800" + "x" * 37, "sg_" + "٣" * 38, format_token("a" * 32) + "\n"])
def test_what_only_resembles_a_token_is_none(text: str) -> None:
    assert not is_well_formed(text)


def test_a_digest_is_a_sha256_and_is_compared_whole() -> None:
    assert digest("sg_x") == hashlib.sha256(b"sg_x").hexdigest()
    assert digests_equal(digest("a"), digest("a"))
    assert not digests_equal(digest("a"), digest("b"))


PARTS = st.lists(st.binary(max_size=4), max_size=4)


@settings(max_examples=500, deadline=None)
@given(PARTS, PARTS)
def test_requests_have_one_fingerprint_only_if_every_part_is_equal(one: list[bytes], other: list[bytes]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) is (one == other)


def test_a_byte_cannot_move_from_one_part_to_the_next() -> None:
    apart = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), (), (b"",)]
    assert len({fingerprint(*parts) for parts in apart}) == len(apart)
