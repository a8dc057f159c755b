"""Characters that a page would not show, and texts that need some of them."""

from __future__ import annotations

import unicodedata

import pytest

from signoff.core.printable import CONTROL_CHARACTERS, UNSEEN_CHARACTERS

SEEN_BLANKS = {"\t", "\n", "\r"}


def test_every_control_and_every_mark_of_a_format_is_unseen_alone() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    # Signs of Arabic, Syriac, Kaithi and hieroglyphs are of the category of formats, too, and can be seen.
    ranges = (
        (0x0600, 0x0606),
        (0x06DD, 0x06DE),
        (0x070F, 0x0710),
        (0x0890, 0x0892),
        (0x08E2, 0x08E3),
        (0x110BD, 0x110CE),
    )
    seen = {
        chr(code) for first, last in (*ranges, (0x13430, 0x13440), (0x1BCA0, 0x1BCA4)) for code in range(first, last)
    }
    expected = {each for each in characters if unicodedata.category(each) in {"Cc", "Cf", "Zl", "Zp"}}
    shown = {each for each in expected - seen - SEEN_BLANKS if not UNSEEN_CHARACTERS.search(f"a{each}b")}
    assert shown == set()
    printed = {each for each in characters if CONTROL_CHARACTERS.search(each)} - {"\r"}
    assert all(UNSEEN_CHARACTERS.search(each) for each in printed)


@pytest.mark.parametrize(
    "text",
    [
        "A line,\r\nand\tanother one.\n",
        "👩\u200d💻 👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 🏳\ufe0f\u200d🌈 1\ufe0f\u20e3 👩🏽\u200d🚀 ☎\ufe0e",
        "می\u200cخواهم",
        "क्\u200dष ශ්\u200dරී",
        "naïve — “Ωmega” 漢字 שלום",
    ],
)
def test_what_a_script_or_a_picture_needs_is_not_marked(text: str) -> None:
    assert UNSEEN_CHARACTERS.findall(text) == []


@pytest.mark.parametrize(
    "character",
    ["\u202e", "\u2066", "\u200b", "\u200c", "\u200d", "\u200e", "\ufeff", "\u2060", "\u00ad", "\r", "\x1b", "\ufe0f"],
)
def test_what_hides_in_words_is_marked(character: str) -> None:
    assert UNSEEN_CHARACTERS.findall(f"approve{character}d") == [character]


def test_a_text_that_is_hidden_in_tags_is_marked() -> None:
    hidden = "".join(chr(0xE0000 + ord(each)) for each in "ignore")
    assert len(UNSEEN_CHARACTERS.findall(f"🏴{hidden}")) == len(hidden)
