"""The functions that come with Signoff: an annotation says how a pipeline's text is read, and none means as JSON."""

# pyright: basic

from __future__ import annotations

import json
from typing import Any

from signoff.funcs import call, names_of_prompts, time_now


def add(x, y):
    """The sum of two numbers."""
    return _number(x) + _number(y)


def subtract(x, y):
    """The first number less the second one."""
    return _number(x) - _number(y)


def multiply(x, y):
    """The product of two numbers."""
    return _number(x) * _number(y)


def divide(x, y):
    """The first number divided by the second one, which is not 0."""
    return _number(x) / _number(y)


def length(value: str) -> int:
    """How many items a list or an object has; how many characters any other text."""
    if value.lstrip()[:1] in {"[", "{"}:
        try:
            return len(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return len(value)


def uppercase(s: str) -> str:
    """The text in capitals."""
    return s.upper()


def lowercase(s: str) -> str:
    """The text in small letters."""
    return s.lower()


def concat(x: str, y: str) -> str:
    """One text after the other."""
    return x + y


def append(lst: list, x) -> list:
    """The list with `x` at its end."""
    return [*lst, x]


def remove(lst: list, x) -> list:
    """The list without its first `x`; an error where there is none."""
    at = lst.index(x)
    return lst[:at] + lst[at + 1 :]


def sort(lst: list) -> list:
    """The list in ascending order."""
    return sorted(lst)


def to_str(x: str) -> str:
    """Anything as text; what is no text becomes JSON."""
    return x


def now() -> str:
    """The time, as RFC 3339 has it, in UTC."""
    return time_now()


def identity(x: str) -> str:
    """What it is given, as it is."""
    return x


def map(function: str, lst: list) -> list:  # the name that users know
    """What the function of that name gives for each item."""
    return [call(function, item) for item in lst]


def reduce(function: str, lst: list, initial: Any = None):
    """The items taken together by the function of that name, from `initial` on, else from the first item."""
    items = list(lst)
    result = items.pop(0) if initial is None and items else initial
    for item in items:
        result = call(function, result, item)
    return result


def get_prompts() -> list:
    """The names of the prompts that the caller may use."""
    return names_of_prompts()


def _number(value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
