"""Names of prompts, pipelines, functions and their arguments."""

import re

MAX_NAME_LENGTH = 100
# A letter, of any script; then letters, digits and underscores.
NAME = r"[^\W\d_]\w*"
# The constants of the pipeline grammar.
RESERVED_NAMES = ("true", "false", "null")
_NAME_PATTERN = re.compile(NAME)


def is_valid_name(text: str) -> bool:
    """Return True if a pipeline can refer to `text` as a name."""
    return _NAME_PATTERN.fullmatch(text) is not None and text not in RESERVED_NAMES and len(text) <= MAX_NAME_LENGTH


def join_names(names: tuple[str, ...] | list[str]) -> str:
    """Join names to a list for a sentence.

    >>> join_names(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
