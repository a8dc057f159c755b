"""The arguments of a pipeline that is called as a model is: the members of a JSON object, or a text."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.render import object_members, request_text, to_texts
from signoff.errors import BadRequest

Names = tuple[str, ...]


class _Chat(msgspec.Struct):
    messages: list[Any]


def parse_arguments(body: bytes, names: Names) -> dict[str, str]:
    """A text for each of `names`: from the last user message of a chat, else from the body itself. Raises BadRequest.

    Either is a JSON object of arguments or, where there is exactly one, that one's text.
    """
    try:
        said = request_text(msgspec.json.decode(body, type=_Chat).messages)
    except msgspec.ValidationError:
        return _of_value(msgspec.json.decode(body), names)
    given = object_members(said)
    if given is not None and (len(names) != 1 or given.keys() == {*names}):
        return _of_members(given, names)
    if len(names) == 1:
        return {names[0]: said}
    if not names:
        return {}
    raise BadRequest(f"The last user message must be a JSON object with {join_names(names)}.")


def _of_value(value: Any, names: Names) -> dict[str, str]:
    if isinstance(value, dict):
        return _of_members(cast("dict[str, Any]", value), names)
    if len(names) == 1:
        return {names[0]: to_text(value)}
    return _of_members({}, names)


def _of_members(given: dict[str, Any], names: Names) -> dict[str, str]:
    missing = [name for name in names if name not in given]
    if missing:
        raise BadRequest(f"There is no value for {join_names(missing)}.")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise BadRequest(f"There is no argument {join_names(unknown)}; there are: {join_names(names) or 'none'}.")
    return to_texts({name: given[name] for name in names})
