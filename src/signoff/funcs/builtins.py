"""Functions that ship with the server. An annotation sets how an argument's text is converted; none means JSON."""

# pyright: basic

import json
import sys
from functools import cmp_to_key
from reprlib import repr as short_repr
from typing import Any

from signoff.funcs import call, names_of_prompts, time_now

# Whole numbers with more digits cannot be written, nor read. To calculate with longer and longer ones would stop the
# whole process, as one multiplication cannot be interrupted.
MAX_DIGITS = sys.int_info.default_max_str_digits
_BEYOND = 10**MAX_DIGITS
# Size of a list of texts and numbers up to which it is sorted at once.
MAX_SORTED_AT_ONCE = 100_000


def add(x, y):
    """Return the sum of two numbers."""
    return _number(_number(x) + _number(y))


def subtract(x, y):
    """Return the first number minus the second."""
    return _number(_number(x) - _number(y))


def multiply(x, y):
    """Return the product of two numbers."""
    return _number(_number(x) * _number(y))


def divide(x, y):
    """Return the first number divided by the second, which must not be 0."""
    return _number(x) / _number(y)


def length(value: str) -> int:
    """Return the number of items of a list or an object, or the number of characters of any other text."""
    if value.lstrip()[:1] in {"[", "{"}:
        try:
            return len(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return len(value)


def uppercase(s: str) -> str:
    """Return the text in upper case."""
    return s.upper()


def lowercase(s: str) -> str:
    """Return the text in lower case."""
    return s.lower()


def concat(x: str, y: str) -> str:
    """Return both texts joined."""
    return x + y


def append(lst: list, x) -> list:
    """Return the list with `x` at its end."""
    return [*lst, x]


def remove(lst: list, x) -> list:
    """Return the list without its first `x`. Fail if there is none."""
    index = lst.index(x)
    return lst[:index] + lst[index + 1 :]


def sort(lst: list) -> list:
    """Return the list in ascending order."""
    if len(lst) <= MAX_SORTED_AT_ONCE and not any(isinstance(item, list) for item in lst):
        return sorted(lst)
    # In lines of Python, between which other threads run, and after which this one can be stopped.
    return sorted(lst, key=cmp_to_key(lambda x, y: -(x < y)))


def to_str(x: str) -> str:
    """Return any value as text; a value that is not text is converted to JSON."""
    return x


def now() -> str:
    """Return the current time in UTC, in the format of RFC 3339."""
    return time_now()


def identity(x: str) -> str:
    """Return the argument unchanged."""
    return x


def map(function: str, lst: list) -> list:  # the name that users know
    """Return the results of the named function for each item."""
    return [call(function, item) for item in lst]


def reduce(function: str, lst: list, initial: Any = None):
    """Combine the items from left to right with the named function, starting with `initial` or else the first item."""
    items = list(lst)
    result = items.pop(0) if initial is None and items else initial
    for item in items:
        result = call(function, result, item)
    return result


def get_prompts() -> list:
    """Return the names of the prompts that the caller may use."""
    return names_of_prompts()


def _number(value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{short_repr(value)} is not a number")
    if isinstance(value, int) and not -_BEYOND < value < _BEYOND:
        raise ValueError(f"a whole number may have at most {MAX_DIGITS} digits")
    return value
