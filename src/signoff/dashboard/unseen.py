"""Texts of models and users as the pages show them: with a mark for each character that would not be seen."""

import re
import unicodedata

from markupsafe import Markup, escape

from signoff.core.printable import UNSEEN_CHARACTERS


def visible(text: str) -> Markup:
    """Return the HTML of `text`, in which each unseen character is a mark with its code.

    Such a character could hide a part of what is signed off, or show it in another order than it is delivered in.

    >>> str(visible("<a> to\u202eb"))
    '&lt;a&gt; to<span class="unseen" title="RIGHT-TO-LEFT OVERRIDE">⟨U+202E⟩</span>b'
    """
    return Markup(UNSEEN_CHARACTERS.sub(_mark, str(escape(text))))  # noqa: S704 -- the text is escaped


def has_unseen(text: str) -> bool:
    """Return True if `visible` marks a character of `text`."""
    return UNSEEN_CHARACTERS.search(text) is not None


def _mark(match: re.Match[str]) -> str:
    name = unicodedata.name(match[0], "control character")
    return f'<span class="unseen" title="{name}">⟨U+{ord(match[0]):04X}⟩</span>'
