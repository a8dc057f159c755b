"""Members of JSON bodies: what other parsers could read in another way is refused.

Signoff reads some members of a body, such as `model`, and passes the body on as it is. Parsers differ in what they make
of two members of one name (the first or the last one counts), and of a name in other letters (Go's `encoding/json` and
others ignore case, by the folding of Unicode). So each member that is read may occur once, and in its own spelling.
"""

import re

import msgspec

from signoff.core.binary import decode_binary
from signoff.core.form import fields_of
from signoff.errors import BadRequest

Members = dict[str, msgspec.Raw]

# Members that decide which model runs, how it answers, and which objects it reads; and those that reviewers see.
READ_MEMBERS = (
    "model",
    "stream",
    "stream_options",
    "conversation",
    "previous_response_id",
    "n",
    "best_of",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "messages",
    "system",
    "instructions",
    "prompt",
    "input",
    "tools",
)
MAX_STRINGS_WITH_ESCAPES = 100_000
_QUOTED = {name: f'"{name}"'.encode() for name in READ_MEMBERS}
# The only escapes of JSON for the characters that names of READ_MEMBERS have.
_LETTER_ESCAPE = re.compile(rb"\\u00(?:[4-6][0-9A-Fa-f]|7[0-9Aa])")
_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?', re.DOTALL)
_MEMBERS = msgspec.json.Decoder(Members)


def read_members(body: bytes) -> Members:
    """Return the members of `body`, which is JSON, once all parsers read the same from them. Raises BadRequest.

    A body that is not an object has no members; an encoded form is checked in the same way.
    """
    try:
        members = _MEMBERS.decode(body)
    except (ValueError, RecursionError):
        return {}
    if (binary := decode_binary(body)) is not None:
        fields_of(binary)
        return members
    is_clear = b"\\u00" not in body
    for name in members:
        if (quoted := _QUOTED.get(name)) is not None:
            is_clear = is_clear and body.count(quoted) == 1
        elif not (name.isascii() and name.islower()) and (folded := fold(name)) in _QUOTED:
            raise BadRequest(
                f"`{folded}` must be written in lower case (got {name!r}), as parsers read other spellings differently."
            )
    if not is_clear:  # usually each name occurs once in the whole body, and no other spelling of one can
        _check_occurrences(body, members)
    return members


def fold(name: str) -> str:
    """Return `name` in the form in which parsers that ignore case compare it."""
    return name.upper().casefold()


def _check_occurrences(body: bytes, members: Members) -> None:
    """Check that no name that is read is doubled on the outermost level. Raises BadRequest."""
    _check_escapes(body)
    # Decoding keeps one member of each name. With all values as they are written, only a doubled member is missing.
    single = msgspec.json.encode(members)
    for name in _QUOTED.keys() & members.keys():
        quoted = _QUOTED[name]
        if body.count(quoted) != single.count(quoted):
            raise BadRequest(f"`{name}` must occur once, as parsers differ about a second one.")


def _check_escapes(body: bytes) -> None:
    """Check that no name of a member is written with escapes of letters. Raises BadRequest."""
    if not _LETTER_ESCAPE.search(body):
        return
    if body.count(b'"') > MAX_STRINGS_WITH_ESCAPES:
        raise BadRequest("The body has too many texts to be checked for escapes; write letters without escapes.")
    for match in _STRING.finditer(body):
        if match[2] is not None and _LETTER_ESCAPE.search(match[1]):
            name = match[1][:100].decode(errors="replace")  # the cut may split a character
            raise BadRequest(f"The name of a member must not have escapes of letters (got {name!r}).")
