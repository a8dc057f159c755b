"""Templates of prompts: their `{name}` placeholders, and rendering with values."""

import re
from collections.abc import Mapping

from signoff.core.pipelines.names import NAME
from signoff.errors import BadRequest

# `{{` and `}}` are literal braces; a brace that opens no valid placeholder is text.
_PIECE = re.compile(r"\{\{|\}\}|\{(" + NAME + r")\}")


def placeholders(text: str) -> tuple[str, ...]:
    """Return the names of the placeholders in order of first use.

    >>> placeholders("{b} and {a}, {b}, {{c}} {1} { d }")
    ('b', 'a')
    """
    return tuple(dict.fromkeys(match[1] for match in _PIECE.finditer(text) if match[1]))


def render_template(text: str, values: Mapping[str, str]) -> str:
    """Replace each placeholder by its value in one pass; placeholders inside of values stay as they are.

    Raises BadRequest if a value is missing.

    >>> render_template("{{{a}}} {b}", {"a": "{b}", "b": "2"})
    '{{b}} 2'
    """
    missing = [name for name in placeholders(text) if name not in values]
    if missing:
        raise BadRequest(f"The request has no value for {', '.join(missing)}.")
    return _PIECE.sub(lambda match: values[match[1]] if match[1] else match[0][0], text)
