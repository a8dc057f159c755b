"""What flows between the calls of a pipeline: texts, and how a function reads them.

Every result is a text. One that is a text already stays as it is; any other is its JSON, with a blank after each comma
and colon. A function reads a text as JSON, else as a number, else as it is, unless its annotation says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, Literal, NoReturn

ParamType = Literal["any", "text", "whole", "number", "truth", "list", "object"]


def to_text(value: object) -> str:
    """The value as it goes on. Raises ValueError where it can be no JSON.

    >>> text_of("a"), text_of(["a", 1.0, None]), text_of(True)
    ('a', '["a", 1.0, null]', 'true')
    """
    if isinstance(value, str):
        return _checked(value)
    try:
        return _checked(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{type(value).__name__} cannot be JSON: {error}") from None


def coerce(value: object, reads: ParamType) -> Any:
    """The value as a function wants it. Raises ValueError, in words, where it cannot be that.

    >>> read_as("12", "any"), read_as("12", "text"), read_as("[1]", "list"), read_as("01", "any")
    (12, '12', [1], 1)
    """
    if reads == "text":
        return to_text(value)
    read: Any = _read(value) if isinstance(value, str) else value
    if reads == "whole" and isinstance(read, float) and read.is_integer():
        return int(read)
    if not _FITS[reads](read):
        shown = to_text(value)
        raise ValueError(f"{shown if len(shown) < 80 else shown[:80] + '…'} is not {_WORDS[reads]}")
    return float(read) if reads == "number" else read


_FITS: dict[ParamType, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "whole": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "truth": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_WORDS: dict[ParamType, str] = {
    "whole": "a whole number",
    "number": "a number",
    "truth": "true or false",
    "list": "a list",
    "object": "an object",
}


def _read(text: str) -> Any:
    """As JSON, else as a number, else as it is."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        pass
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if text.isascii() and "_" not in text and isfinite(number):
            return number
    return text


def _finite(digits: str) -> float:
    number = float(digits)
    return number if isfinite(number) else _refuse(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _checked(text: str) -> str:
    """Half a surrogate pair is no text that could leave."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it is not a text: {error.reason}") from None
    return text
