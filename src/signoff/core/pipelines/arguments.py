"""Arguments of a pipeline that is called like a model: the members of a JSON object, or a text."""

from typing import Any, cast

import msgspec

from signoff.core.pipelines.coerce import to_text
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.render import decode_request, object_members, request_text, to_texts
from signoff.errors import BadRequest

Names = tuple[str, ...]


class _Chat(msgspec.Struct):
    messages: list[Any]


def parse_arguments(body: bytes, names: Names) -> dict[str, str]:
    """Return a text for each of `names`, from the last user message of a chat, else from the body itself.

    The message or body is a JSON object of arguments, or the text of the only argument.

    Raises:
        BadRequest: an argument is missing, unknown, or not convertible to a text.
    """
    try:
        text = request_text(msgspec.json.decode(body, type=_Chat).messages)
    except (ValueError, RecursionError):
        return _arguments_from_value(decode_request(body), names)
    members = object_members(text)
    if members is not None and (len(names) != 1 or members.keys() == {*names}):
        return _arguments_from_members(members, names)
    if len(names) == 1:
        return {names[0]: text}
    if not names:
        return {}
    raise BadRequest(f"The last user message must be a JSON object with {join_names(names)}.")


def _arguments_from_value(value: Any, names: Names) -> dict[str, str]:
    if isinstance(value, dict):
        return _arguments_from_members(cast("dict[str, Any]", value), names)
    if len(names) == 1:
        return {names[0]: to_text(value)}
    return _arguments_from_members({}, names)


def _arguments_from_members(members: dict[str, Any], names: Names) -> dict[str, str]:
    missing = [name for name in names if name not in members]
    if missing:
        raise BadRequest(f"The arguments lack {join_names(missing)}; add a value for each.")
    unknown = [name for name in members if name not in names]
    if unknown:
        raise BadRequest(f"There is no argument {join_names(unknown)}; there are: {join_names(names) or 'none'}.")
    return to_texts({name: members[name] for name in names})
