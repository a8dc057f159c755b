"""Conversion of the values that calls of a pipeline pass on: results to texts, and texts to arguments of functions.

Every result becomes a text. A text stays as it is; any other value becomes its JSON, with a blank after each comma and
colon. A function reads a text as JSON, else as a number, else as it is, unless its annotation says otherwise.
"""

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, Literal, NoReturn

ParamType = Literal["any", "string", "integer", "number", "boolean", "array", "object"]


def to_text(value: object) -> str:
    """Convert a result to a text. Raises ValueError if it has no JSON form.

    >>> to_text("a"), to_text(["a", 1.0, None]), to_text(True)
    ('a', '["a", 1.0, null]', 'true')
    """
    if isinstance(value, str):
        return _check_unicode(value)
    try:
        return _check_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{type(value).__name__} cannot be JSON: {error}") from None


def coerce(value: object, param_type: ParamType) -> Any:
    """Convert a value to the type that a parameter declares. Raises ValueError if that is impossible.

    >>> coerce("12", "any"), coerce("12", "string"), coerce("[1]", "array"), coerce("01", "any")
    (12, '12', [1], 1)
    """
    if param_type == "string":
        return to_text(value)
    result: Any = _parse(value) if isinstance(value, str) else value
    if param_type == "integer" and isinstance(result, float) and result.is_integer():
        return int(result)
    if not _FITS[param_type](result):
        shown = to_text(value)
        raise ValueError(f"{shown if len(shown) < 80 else shown[:80] + '…'} is not {_TYPE_NAMES[param_type]}")
    return float(result) if param_type == "number" else result


_FITS: dict[ParamType, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_TYPE_NAMES: dict[ParamType, str] = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def _parse(text: str) -> Any:
    """Parse as JSON, else as a number; return any other text as it is."""
    try:
        return json.loads(text, parse_constant=_reject, parse_float=_finite)
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
    return number if isfinite(number) else _reject(digits)


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check_unicode(text: str) -> str:
    """Return `text`. Raise ValueError if it has a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not valid Unicode: {error.reason}") from None
    return text
