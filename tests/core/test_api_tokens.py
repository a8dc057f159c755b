"""Tests of API tokens and of the fingerprints of requests."""

from __future__ import annotations

import hashlib
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.api_tokens import (
    ALPHABET,
    PREFIX,
    SECRET_LENGTH,
    digests_equal,
    format_token,
    hash_token,
    is_well_formed,
)
from signoff.core.fingerprint import fingerprint

SECRETS = st.text(ALPHABET, min_size=SECRET_LENGTH, max_size=SECRET_LENGTH)


def test_the_format_of_a_token_is_stable() -> None:
    # a token that has been issued must stay valid in every later version
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
def test_any_single_wrong_character_is_detected(secret: str) -> None:
    token = format_token(secret)
    for index, expected in enumerate(token):
        for character in ALPHABET + "_- é":
            assert is_well_formed(token[:index] + character + token[index + 1 :]) is (character == expected)


@settings(deadline=None)
@given(SECRETS, st.integers(0, 40), st.text(min_size=1, max_size=3))
def test_a_token_of_a_wrong_length_is_detected(secret: str, index: int, inserted: str) -> None:
    token = format_token(secret)
    assert not is_well_formed(token[:index] + inserted + token[index:])
    assert not is_well_formed(token[:index])
    assert not is_well_formed(token.swapcase())


@settings(deadline=None)
@given(st.text() | st.text(min_size=38, max_size=38).map(PREFIX.__add__))
def test_any_text_can_be_checked(text: str) -> None:
    assert not is_well_formed(text)


@pytest.mark.parametrize("text", ["", PREFIX, "sg_\ud800" + "x" * 37, "sg_" + "٣" * 38, format_token("a" * 32) + "\n"])
def test_a_text_that_resembles_a_token_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text)


def test_a_digest_is_a_sha256_and_can_be_compared() -> None:
    assert hash_token("sg_x") == hashlib.sha256(b"sg_x").hexdigest()
    assert digests_equal(hash_token("a"), hash_token("a"))
    assert not digests_equal(hash_token("a"), hash_token("b"))


PARTS = st.lists(st.binary(max_size=4), max_size=4)


@settings(max_examples=500, deadline=None)
@given(PARTS, PARTS)
def test_fingerprints_are_equal_only_if_all_parts_are_equal(one: list[bytes], other: list[bytes]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) is (one == other)


def test_the_borders_between_parts_change_the_fingerprint() -> None:
    different = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), (), (b"",)]
    assert len({fingerprint(*parts) for parts in different}) == len(different)
