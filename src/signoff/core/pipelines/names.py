"""What prompts, pipelines, functions and their arguments can be called."""

from __future__ import annotations

import re

MAX_NAME_LENGTH = 100
# A letter, of any script; then letters, digits and underscores.
NAME = r"[^\W\d_]\w*"
# These are values in a pipeline.
RESERVED_NAMES = ("true", "false", "null")
_WHOLE = re.compile(NAME)


def is_valid_name(text: str) -> bool:
    """Whether a pipeline could name it."""
    return _WHOLE.fullmatch(text) is not None and text not in RESERVED_NAMES and len(text) <= MAX_NAME_LENGTH


def join_names(names: tuple[str, ...] | list[str]) -> str:
    """The names, as a sentence lists them.

    >>> in_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
