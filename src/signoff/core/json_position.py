"""Positions in JSON texts, so that an error message can say where a person has to look."""

import json
import re

_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def find_syntax_error(text: str) -> tuple[int, int] | None:
    r"""Return the line and the column, from 1, at which `text` stops being JSON; None if it is JSON.

    >>> find_syntax_error('{"a":\n  }'), find_syntax_error("{}")
    ((2, 3), None)
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno, error.colno
    except (ValueError, RecursionError):
        return 1, 1
    return None


def find_position(text: str, path: str) -> tuple[int, int]:
    r"""Return the line and the column, from 1, of the value at `path`, such as `rules[0].if`.

    If there is no such value, it is the position of the innermost value on the path that exists.

    >>> find_position('{"rules": [\n  {"if": true}]}', "rules[0].if")
    (2, 10)
    """
    place = _end_of_space(text, 0)
    for name, index in _STEP.findall(path):
        try:
            following = _member(text, place, name) if name else _item(text, place, int(index))
        except (ValueError, IndexError, RecursionError):
            break
        if following is None:
            break
        place = following
    before = text[:place]
    return before.count("\n") + 1, place - (before.rfind("\n") + 1) + 1


def _member(text: str, start: int, name: str) -> int | None:
    """Return the position of a member of the object that starts at `start`; None if there is none."""
    if text[start] != "{":
        return None
    place = _end_of_space(text, start + 1)
    while text[place] == '"':
        key, place = _DECODER.raw_decode(text, place)
        place = _end_of_space(text, _end_of_space(text, place) + 1)
        if key == name:
            return place
        _, place = _DECODER.raw_decode(text, place)
        place = _end_of_space(text, place)
        if text[place] != ",":
            return None
        place = _end_of_space(text, place + 1)
    return None


def _item(text: str, start: int, index: int) -> int | None:
    """Return the position of an item of the array that starts at `start`; None if there is none."""
    if text[start] != "[":
        return None
    place = _end_of_space(text, start + 1)
    for _ in range(index):
        _, place = _DECODER.raw_decode(text, place)
        place = _end_of_space(text, place)
        if text[place] != ",":
            return None
        place = _end_of_space(text, place + 1)
    return place


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()
