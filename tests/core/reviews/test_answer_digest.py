"""Digests of answers: only edits that matter change them."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.reviews.answer_digest import Harmless, digest_answer, is_caught, mark_planted


def chat(text: str, **more: object) -> bytes:
    message = {"role": "assistant", "content": text}
    return msgspec.json.encode({"choices": [{"index": 0, "message": message}]} | more)


@pytest.mark.parametrize(
    ("edited", "harmless", "is_same"),
    [
        ("Hello, world", (), True),
        (" Hello,\n\tworld ", (), True),
        ("Hello,world", (), True),
        ("hello, world", (), False),
        ("hello, world", ("case",), True),
        ("Hello world", ("case",), False),
        ("Hello world!", ("punctuation",), True),
        ("Hallo, world", ("case", "punctuation"), False),
        ("", ("case", "punctuation"), False),
    ],
    ids=str,
)
def test_an_edit_is_wrong_if_it_changes_more_than_is_harmless(
    edited: str, harmless: tuple[Harmless, ...], is_same: bool
) -> None:
    assert (digest_answer(chat("Hello, world"), harmless) == digest_answer(chat(edited), harmless)) == is_same


def test_a_mark_without_kinds_of_harmless_edits_is_the_digest_alone() -> None:
    assert mark_planted(chat("Hello"), ()) == digest_answer(chat("Hello"))
    marks = [mark_planted(chat("Hello"), harmless) for harmless in ((), ("case",), ("case", "punctuation"))]
    assert [is_caught("approve", chat("hello!"), mark) for mark in marks] == [True, True, False]
    assert [is_caught("reject", chat("Hello"), mark) for mark in marks] == [True] * 3


def test_the_order_of_members_and_the_usage_do_not_matter_but_arguments_do() -> None:
    assert digest_answer(b'{"a":1,"b":2}') == digest_answer(b'{ "b": 2, "a": 1, "usage": {"total_tokens": 3} }')
    assert digest_answer(b'{"a":1}') != digest_answer(b'{"a":2}')
    assert digest_answer(b'{"a":1}') != digest_answer(b'{"a":"1"}')


def test_what_is_no_json_has_a_digest_too() -> None:
    broken = b'{"a":' * 10_000
    assert digest_answer(broken) == digest_answer(broken) != digest_answer(b"x")
    assert digest_answer(None) == digest_answer(b"null")


@pytest.mark.parametrize("depth", [150, 250, 480, 600, 990, 5000])
@pytest.mark.parametrize("frames", [0, 300])
def test_the_digest_of_deep_json_does_not_depend_on_its_caller(depth: int, frames: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth

    def digest_below(frames: int) -> str:
        return digest_below(frames - 1) if frames else digest_answer(deep)

    assert digest_below(frames) == digest_answer(deep) != digest_answer(deep.replace(b"1", b"2"))
