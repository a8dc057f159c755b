"""Parser of pipelines: from the text to the tree of calls.

    call   := name "(" [ arg ("," arg)* ] ")"
    arg    := [ name "=" ] value
    value  := call | name | number | string | true | false | null
    name   := letter (letter | digit | "_")*

Numbers and strings are those of JSON (RFC 8259). The parser is LALR(1), so it takes linear time.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, cast

import msgspec
from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.visitors import Transformer

from signoff.core.pipelines.names import MAX_NAME_LENGTH, NAME
from signoff.core.pipelines.tree import Arg, Call, Constant, Name
from signoff.errors import BadPipeline

MAX_CHARACTERS = 64 * 1024
MAX_DEPTH = 100
MAX_CALLS = 1000
MAX_DIGITS = 400
_CONSTANTS = {"TRUE": True, "FALSE": False, "NULL": None}
_TOKEN_NAMES: dict[str, str] = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": "a comma",
    "EQUAL": "=",
    "$END": "the end",
}

_GRAMMAR = rf"""
start: call
call: NAME "(" [_args] ")"
_args: arg ("," arg)*
arg: value | NAME "=" value -> named
?value: call | NAME -> name | (NUMBER | STRING | TRUE | FALSE | NULL) -> literal
TRUE.2: /true(?!\w)/
FALSE.2: /false(?!\w)/
NULL.2: /null(?!\w)/
NAME: /{NAME}/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
STRING: /"([^"\\\x00-\x1f]|\\.)*"/
%ignore /[ \t\r\n]+/
"""


def parse(text: str) -> Call:
    """Parse a pipeline and return its outermost call. Raises BadPipeline, with the position and the expected tokens."""
    if len(text) > MAX_CHARACTERS:
        raise BadPipeline.at_position(f"the pipeline is longer than {MAX_CHARACTERS} characters", text, MAX_CHARACTERS)
    try:
        return cast("Call", _parser().parse(text))
    except _SyntaxFault as fault:
        raise BadPipeline.at_position(fault.message, text, fault.at) from None
    except UnexpectedCharacters as error:
        at = cast("int", cast("Any", error).pos_in_stream)
        fault = "unterminated string" if text[at] == '"' else f"unexpected {text[at]!r}"
        raise BadPipeline.at_position(f"{fault}; expected {_expected(error.allowed)}", text, at) from None
    except UnexpectedToken as error:
        token = cast("Token", error.token)
        is_end = token.type == "$END"
        fault = "unexpected end" if is_end else f"unexpected {_shorten(token)}"
        at = len(text) if is_end else token.start_pos or 0
        raise BadPipeline.at_position(
            f"{fault}; expected {_expected(error.accepts or error.expected)}", text, at
        ) from None


def arguments_of(call: Call) -> tuple[str, ...]:
    """Return the names of the arguments that a run needs, in order of first use."""
    return tuple(dict.fromkeys(value.name for value in values_of(call) if isinstance(value, Name)))


def calls_of(call: Call) -> tuple[Call, ...]:
    """Return `call` and every call below it, in the order of the text."""
    return (call, *(value for value in values_of(call) if isinstance(value, Call)))


def values_of(call: Call) -> Iterator[Call | Name | Constant]:
    """Yield every value below `call`, in the order of the text."""
    stack = [arg.value for arg in reversed(call.args)]
    while stack:
        value = stack.pop()
        yield value
        if isinstance(value, Call):
            stack += [arg.value for arg in reversed(value.args)]


class _SyntaxFault(Exception):
    """A text that the grammar accepts but that exceeds a bound."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


class _Node(msgspec.Struct, frozen=True):
    """A value with the depth and the number of its calls."""

    value: Call | Name | Constant
    depth: int = 0
    calls: int = 0


class _Tree(Transformer[Token, Any]):
    """A builder of the tree during parsing, which needs no second pass and no recursion."""

    def start(self, parts: list[_Node]) -> Any:
        return parts[0].value

    def call(self, parts: list[Any]) -> _Node:
        name, args = cast("Token", parts[0]), [part for part in parts[1:] if part is not None]
        at = name.start_pos or 0
        depth = 1 + max((part.depth for _, part in args), default=0)
        calls = 1 + sum(part.calls for _, part in args)
        if depth > MAX_DEPTH:
            raise _SyntaxFault(f"calls are nested more than {MAX_DEPTH} deep", at)
        if calls > MAX_CALLS:
            raise _SyntaxFault(f"the pipeline has more than {MAX_CALLS} calls", at)
        values = tuple(Arg(part.value, name=arg_name) for arg_name, part in args)
        return _Node(Call(name=_name(name), args=values, at=at), depth, calls)

    def arg(self, parts: list[_Node]) -> tuple[str | None, _Node]:
        return None, parts[0]

    def named(self, parts: list[Any]) -> tuple[str | None, _Node]:
        return _name(parts[0]), parts[1]

    def name(self, parts: list[Token]) -> _Node:
        return _Node(Name(_name(parts[0])))

    def literal(self, parts: list[Token]) -> _Node:
        token = parts[0]
        return _Node(Constant(_CONSTANTS[token.type] if token.type in _CONSTANTS else _literal(token)))


def _name(token: Token) -> str:
    if len(token) > MAX_NAME_LENGTH:
        raise _SyntaxFault(f"the name is longer than {MAX_NAME_LENGTH} characters", token.start_pos or 0)
    return str(token)


def _literal(token: Token) -> str | int | float:
    at = token.start_pos or 0
    if token.type == "NUMBER" and len(token) > MAX_DIGITS:
        raise _SyntaxFault(f"the number has more than {MAX_DIGITS} digits", at)
    try:
        return msgspec.json.decode(token.encode(), type=str | int | float)
    except ValueError:
        raise _SyntaxFault(f"{_shorten(token)} is not a JSON {token.type.lower()}", at) from None


def _shorten(token: Token) -> str:
    return repr(str(token)) if len(token) < 40 else repr(f"{token[:40]}…")


def _expected(names: Iterable[str]) -> str:
    return " or ".join(sorted(_TOKEN_NAMES.get(name, name.lower()) for name in names))


@cache
def _parser() -> Any:
    """Return the parser, which takes milliseconds to make."""
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual", transformer=_Tree(), propagate_positions=False)
