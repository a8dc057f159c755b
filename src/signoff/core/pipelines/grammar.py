"""The text of a pipeline into the tree of its calls.

    call   := name "(" [ arg ("," arg)* ] ")"
    arg    := [ name "=" ] value
    value  := call | name | number | string | true | false | null
    name   := letter (letter | digit | "_")*

Numbers and strings are those of JSON (RFC 8259). The parser is LALR(1): it takes time in proportion to the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec
from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.visitors import Transformer

from signoff.core.pipelines.names import MAX_NAME_LENGTH, NAME
from signoff.core.pipelines.tree import Arg, Call, Given, Name
from signoff.errors import BadPipeline

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 100
MAX_CALLS = 1000
MAX_DIGITS = 400
_WORDS = {"TRUE": True, "FALSE": False, "NULL": None}
_SHOWN: dict[str, str] = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a text",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": "a comma",
    "EQUAL": "=",
    "$END": "its end",
}

_GRAMMAR = rf"""
start: call
call: NAME "(" [_args] ")"
_args: arg ("," arg)*
arg: value | NAME "=" value -> named
?value: call | NAME -> name | (NUMBER | STRING | TRUE | FALSE | NULL) -> given
TRUE.2: /true(?!\w)/
FALSE.2: /false(?!\w)/
NULL.2: /null(?!\w)/
NAME: /{NAME}/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
STRING: /"([^"\\\x00-\x1f]|\\.)*"/
%ignore /[ \t\r\n]+/
"""


def parse(text: str) -> Call:
    """The outermost call, with all that it calls. Raises BadPipeline, which says where and why."""
    if len(text) > MAX_CHARACTERS:
        raise BadPipeline.at_position(f"A pipeline has at most {MAX_CHARACTERS} characters.", text, MAX_CHARACTERS)
    try:
        return cast("Call", _PARSER.parse(text))
    except _Refused as flaw:
        raise BadPipeline.at_position(flaw.message, text, flaw.at) from None
    except UnexpectedCharacters as error:
        at = cast("int", cast("Any", error).pos_in_stream)
        what = "a text that begins here does not end" if text[at] == '"' else f"{text[at]!r} does not belong here"
        raise BadPipeline.at_position(f"{what}; expected {_expected(error.allowed)}", text, at) from None
    except UnexpectedToken as error:
        token = cast("Token", error.token)
        is_end = token.type == "$END"
        what = "the pipeline ends too early" if is_end else f"{_short(token)} does not belong here"
        at = len(text) if is_end else token.start_pos or 0
        raise BadPipeline.at_position(
            f"{what}; expected {_expected(error.accepts or error.expected)}", text, at
        ) from None


def arguments_of(call: Call) -> tuple[str, ...]:
    """What must be given when it runs, in order of first use."""
    return tuple(dict.fromkeys(value.name for value in values_of(call) if isinstance(value, Name)))


def calls_of(call: Call) -> tuple[Call, ...]:
    """Every call in it, itself too, in the order of the text."""
    return (call, *(value for value in values_of(call) if isinstance(value, Call)))


def values_of(call: Call) -> Iterator[Call | Name | Given]:
    """Every value below `call`, in the order of the text."""
    waiting = [arg.value for arg in reversed(call.args)]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, Call):
            waiting += [arg.value for arg in reversed(value.args)]


class _Refused(Exception):
    """What the grammar takes, and we do not."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


class _Part(msgspec.Struct, frozen=True):
    """A value with how deep it goes, and how many calls it holds."""

    value: Call | Name | Given
    depth: int = 0
    calls: int = 0


class _Tree(Transformer[Token, Any]):
    """Makes each node of the tree as soon as its text was read, so that nothing is done twice or recursively."""

    def start(self, parts: list[_Part]) -> Any:
        return parts[0].value

    def call(self, parts: list[Any]) -> _Part:
        name, args = cast("Token", parts[0]), [part for part in parts[1:] if part is not None]
        at = name.start_pos or 0
        depth = 1 + max((part.depth for _, part in args), default=0)
        calls = 1 + sum(part.calls for _, part in args)
        if depth > MAX_DEPTH:
            raise _Refused(f"calls stand more than {MAX_DEPTH} deep in each other", at)
        if calls > MAX_CALLS:
            raise _Refused(f"a pipeline has at most {MAX_CALLS} calls", at)
        made = tuple(Arg(part.value, name=told) for told, part in args)
        return _Part(Call(name=_name(name), args=made, at=at), depth, calls)

    def arg(self, parts: list[_Part]) -> tuple[str | None, _Part]:
        return None, parts[0]

    def named(self, parts: list[Any]) -> tuple[str | None, _Part]:
        return _name(parts[0]), parts[1]

    def name(self, parts: list[Token]) -> _Part:
        return _Part(Name(_name(parts[0])))

    def given(self, parts: list[Token]) -> _Part:
        token = parts[0]
        return _Part(Given(_WORDS[token.type] if token.type in _WORDS else _literal(token)))


def _name(token: Token) -> str:
    if len(token) > MAX_NAME_LENGTH:
        raise _Refused(f"a name has at most {MAX_NAME_LENGTH} characters", token.start_pos or 0)
    return str(token)


def _literal(token: Token) -> str | int | float:
    at = token.start_pos or 0
    if token.type == "NUMBER" and len(token) > MAX_DIGITS:
        raise _Refused(f"a number has at most {MAX_DIGITS} digits", at)
    try:
        return msgspec.json.decode(token.encode(), type=str | int | float)
    except ValueError:
        raise _Refused(f"{_short(token)} is not a {token.type.lower()} of JSON", at) from None


def _short(token: Token) -> str:
    return repr(str(token)) if len(token) < 40 else repr(f"{token[:40]}…")


def _expected(names: Iterable[str]) -> str:
    return " or ".join(sorted(_SHOWN.get(name, name.lower()) for name in names))


_PARSER: Any = Lark(_GRAMMAR, parser="lalr", lexer="contextual", transformer=_Tree(), propagate_positions=False)
