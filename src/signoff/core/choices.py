"""Values of enumerations: they are accepted in any case, and written in lower case."""

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

C = TypeVar("C", bound=str)


def choice_of(text: str, choices: Iterable[C]) -> C | None:
    """Return the one of `choices` that `text` is, in any case; None if it is none of them.

    >>> choice_of("Admin", ["admin", "user"]), choice_of("root", ["admin", "user"])
    ('admin', None)
    """
    known = {str(choice): choice for choice in choices}
    return known.get(text) or known.get(text.strip().lower())


def choices_of(text: str, choices: Sequence[C]) -> tuple[C, ...] | None:
    """Return those of `choices` that `text` lists, separated by commas, each once; None if it lists another.

    >>> choices_of("Day,user,day", ["day", "user"]), choices_of("day,week", ["day", "user"])
    (('day', 'user'), None)
    """
    values = dict.fromkeys(choice_of(part, choices) for part in text.split(",") if part)
    return None if None in values else tuple(choice for choice in values if choice is not None)


def in_lower_case(value: Any, annotation: Any) -> Any:
    """Return a value for a type with its values of enumerations in lower case, and all else as it is.

    >>> in_lower_case({"Ops": "Admin"}, dict[str, Literal["admin", "user"]])
    {'Ops': 'admin'}
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal and isinstance(value, str):
        return choice_of(value, (each for each in arguments if isinstance(each, str))) or value
    if origin is dict and isinstance(value, dict):
        members = cast("dict[Any, Any]", value)
        return {name: in_lower_case(member, arguments[1]) for name, member in members.items()}
    if origin in {Union, UnionType}:
        for each in arguments:
            value = in_lower_case(value, each)
    return value
