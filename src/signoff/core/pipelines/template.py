"""Templates of prompts: their `{name}` placeholders, and rendering with values."""

import re
from collections import Counter
from collections.abc import Mapping

from signoff.core.pipelines.names import NAME, join_names
from signoff.errors import BadRequest

# `{{` and `}}` are literal braces; a brace that opens no valid placeholder is text.
_PIECE = re.compile(r"\{\{|\}\}|\{(" + NAME + r")\}")


def placeholders(text: str) -> tuple[str, ...]:
    """Return the names of the placeholders in order of first use.

    >>> placeholders("{b} and {a}, {b}, {{c}} {1} { d }")
    ('b', 'a')
    """
    return tuple(dict.fromkeys(match[1] for match in _PIECE.finditer(text) if match[1]))


def render_template(text: str, values: Mapping[str, str], *, max_bytes: int) -> str:
    """Replace each placeholder by its value in one pass; placeholders inside of values stay as they are.

    Raises BadRequest if a value is missing, or if the result would have more than `max_bytes` in UTF-8.

    >>> render_template("{{{a}}} {b}", {"a": "{b}", "b": "2"}, max_bytes=7)
    '{{b}} 2'
    """
    missing = [name for name in placeholders(text) if name not in values]
    if missing:
        raise BadRequest(f"The request has no value for {join_names(missing)}; send one for each placeholder.")
    size_bytes = rendered_bytes(text, values)
    if size_bytes > max_bytes:
        raise BadRequest(
            f"The prompt with its values must have at most {max_bytes} bytes (setting `max_body_bytes`); "
            f"it would have {size_bytes}. Send shorter values."
        )
    return _PIECE.sub(lambda match: values[match[1]] if match[1] else match[0][0], text)


def rendered_bytes(text: str, values: Mapping[str, str]) -> int:
    """Return the size of the rendered text in UTF-8, without rendering it."""
    size_bytes, counts = _size_bytes(text), Counter(match[0] for match in _PIECE.finditer(text))
    for piece, count in counts.items():
        inserted = 1 if piece in {"{{", "}}"} else _size_bytes(values[piece[1:-1]])
        size_bytes += count * (inserted - _size_bytes(piece))
    return size_bytes


def _size_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
