"""What prompts, pipelines, functions and their arguments can be called."""

from __future__ import annotations

import re

LONGEST_NAME = 100
# A letter, of any script; then letters, digits and underscores.
NAME = r"[^\W\d_]\w*"
# These are values in a pipeline.
TAKEN = ("true", "false", "null")
_WHOLE = re.compile(NAME)


def can_be_called(text: str) -> bool:
    """Whether a pipeline could name it."""
    return _WHOLE.fullmatch(text) is not None and text not in TAKEN and len(text) <= LONGEST_NAME


def in_words(names: tuple[str, ...] | list[str]) -> str:
    """The names, as a sentence lists them.

    >>> in_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
