"""A prompt's text with `{name}` in it: which names there are, and the text with values in their places."""

from __future__ import annotations

import re
from collections.abc import Mapping

from signoff.core.pipelines.names import NAME
from signoff.errors import BadRequest

# `{{` and `}}` are literal braces; a brace that opens no valid placeholder is text.
_PIECE = re.compile(r"\{\{|\}\}|\{(" + NAME + r")\}")


def placeholders(text: str) -> tuple[str, ...]:
    """The names in order of first use.

    >>> placeholders("{b} and {a}, {b}, {{c}} {1} { d }")
    ('b', 'a')
    """
    return tuple(dict.fromkeys(found[1] for found in _PIECE.finditer(text) if found[1]))


def render_template(text: str, values: Mapping[str, str]) -> str:
    """The text with a value for each placeholder, in one pass: what stands in a value is never looked at.

    Raises BadRequest where a value is missing.

    >>> filled("{{{a}}} {b}", {"a": "{b}", "b": "2"})
    '{{b}} 2'
    """
    missing = [name for name in placeholders(text) if name not in values]
    if missing:
        raise BadRequest(f"There is no value for {', '.join(missing)}.")
    return _PIECE.sub(lambda found: values[found[1]] if found[1] else found[0][0], text)
