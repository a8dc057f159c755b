"""Expressions of the conditions of policies: the part of CEL that they may use, with the types of what they read.

CEL itself checks names and types only when it evaluates. So this module parses an expression when it is saved, by the
grammar of the language (https://github.com/google/cel-spec/blob/master/doc/langdef.md), and refuses what would fail.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import msgspec
from lark import Lark, Token, Tree, UnexpectedInput
from lark.exceptions import VisitError

MAX_LENGTH = 2000
MAX_NESTED_LOOPS = 2
MAX_DEPTH = 60

_GRAMMAR = r"""
?start: expr
?expr: or | or "?" or ":" expr -> conditional
?or: and | or "||" and -> logical
?and: relation_or_sum | and "&&" relation_or_sum -> logical
?relation_or_sum: sum | relation_or_sum RELATION sum -> relation | relation_or_sum IN sum -> membership
?sum: product | sum SUM product -> arithmetic
?product: unary | product PRODUCT unary -> arithmetic
?unary: member | "!" unary -> negation | "-" unary -> minus
?member: primary
    | member "." NAME -> select
    | member "." NAME "(" args? ")" -> method
    | member "[" expr "]" -> index
?primary: NAME -> name
    | NAME "(" args? ")" -> function
    | "(" expr ")"
    | "[" args? "]" -> list
    | "{" entries? "}" -> map
    | STRING -> string
    | FLOAT -> double
    | INT -> int
    | BOOL -> bool
    | NULL -> null
args: expr ("," expr)*
entries: expr ":" expr ("," expr ":" expr)*
RELATION: "<=" | ">=" | "==" | "!=" | "<" | ">"
SUM: "+" | "-"
PRODUCT: "*" | "/" | "%"
IN.3: /in(?!\w)/
BOOL.3: /(true|false)(?!\w)/
NULL.3: /null(?!\w)/
NAME: /[_a-zA-Z][_a-zA-Z0-9]*/
FLOAT.2: /\d+\.\d+([eE][+-]?\d+)?|\d+[eE][+-]?\d+/
INT: /0x[0-9a-fA-F]+|\d+/
STRING: /[rR]?("(\\.|[^"\\\n])*"|'(\\.|[^'\\\n])*')/
COMMENT: /\/\/[^\n]*/
%ignore /\s+/
%ignore COMMENT
"""


class Type(msgspec.Struct, frozen=True):
    """The type of an expression. `any` stands for JSON whose form is known only when it is evaluated."""

    kind: str
    """Name of the type in CEL, `object` for a map with known fields, or `any`."""
    fields: Mapping[str, "Type"] | None = None
    """Types of the fields of an `object`, by name; None for any other type."""
    item: "Type | None" = None
    """Type of the items of a `list`; None for any other type."""


ANY, BOOL, INT, DOUBLE, STRING, NULL = (Type(kind) for kind in ("any", "bool", "int", "double", "string", "null"))
NUMBERS = frozenset({"int", "double"})
FIELDS: Mapping[str, Type] = {
    "request": Type(
        "object",
        {
            "path": STRING,
            "model": STRING,
            "target": STRING,
            "prompt": STRING,
            "door": STRING,
            "user": STRING,
            "tags": ANY,
            "tokens": INT,
        },
    ),
    "answer": Type(
        "object",
        {
            "text": STRING,
            "finish_reason": STRING,
            "refusal": STRING,
            "tool_calls": Type("list", item=Type("object", {"name": STRING, "arguments": ANY})),
            "length": INT,
            "empty": BOOL,
            "truncated": BOOL,
        },
    ),
    "signals": Type(
        "object",
        {
            "logprob_mean": DOUBLE,
            "logprob_min": DOUBLE,
            "schema_ok": BOOL,
            "judge": DOUBLE,
            "moderation": Type("object", {"flagged": BOOL, "categories": ANY, "scores": ANY}),
            "webhook": ANY,
        },
    ),
    "cost": DOUBLE,
    "usage": Type("object", {"prompt_tokens": INT, "cached_tokens": INT, "completion_tokens": INT}),
}
_FUNCTIONS = {"size": INT, "int": INT, "double": DOUBLE, "string": STRING}
_METHODS = {"contains": BOOL, "startsWith": BOOL, "endsWith": BOOL, "matches": BOOL, "size": INT}
_LOOPS = frozenset({"all", "exists", "exists_one", "filter", "map"})


class BadExpressionError(ValueError):
    """An expression that cannot be a condition; the message has the position."""


class Expression(NamedTuple):
    """A checked expression: the values and the patterns in it."""

    reads: frozenset[str]
    """Values that it reads, such as `answer.text` or `cost`."""
    patterns: tuple[Token, ...]
    """Regular expressions that it has, as they are written, with their positions."""


def check_expression(source: str) -> Expression:
    """Return what `source` reads and has, once it is checked.

    Raises BadExpressionError: the expression is too long or too deep, not in the language, names something that does
    not exist, or combines types in a way that fails.
    """
    if not 0 < len(source) <= MAX_LENGTH:
        raise BadExpressionError(f"the expression must be 1 to {MAX_LENGTH} characters long (got {len(source)})")
    try:
        tree: Any = _parser().parse(source)  # pyright: ignore[reportUnknownMemberType] -- lark is partly typed
    except UnexpectedInput as error:
        place = f"line {error.line}, column {error.column}" if error.line > 0 else "its end"
        raise BadExpressionError(f"syntax error at {place}") from None
    checker = _Checker()
    try:
        result = checker.type_of(tree, {}, 0)
    except (VisitError, RecursionError):
        raise BadExpressionError("the expression is nested too deeply") from None
    if result.kind not in {"bool", "any"}:
        raise BadExpressionError(f"the result must be true or false (it is {_described(result)})")
    return Expression(frozenset(checker.names), tuple(checker.patterns))


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=False)


Scope = Mapping[str, Type]


class _Checker:
    """Walk through an expression that gives the type of each node, and collects what is read."""

    def __init__(self) -> None:
        self.names = set[str]()
        self.patterns = list[Token]()
        self._depth = 0

    def type_of(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        """Return the type of `node`, with the variables of `scope`, inside of `loops` macros."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(node, "the expression is nested too deeply")
        check: Callable[[Tree[Any], Scope, int], Type] = getattr(self, f"_{node.data}")
        result = check(node, scope, loops)
        self._depth -= 1
        return result

    def _name(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        name = str(node.children[0])
        if name in scope:
            return scope[name]
        if name not in FIELDS:
            raise _error(node, f"there is no `{name}`; an expression can read {_listed(FIELDS)}")
        if FIELDS[name].fields is not None:
            raise _error(node, f"`{name}` needs a field: {_listed(FIELDS[name].fields)}")
        self.names.add(name)
        return FIELDS[name]

    def _select(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        return self._member(node.children[1], node.children[0], str(node.children[1]), scope, loops)

    def _index(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        base, key = node.children
        if key.data == "string" and (literal := _literal(key)) is not None and base.data != "map":
            return self._member(key, base, literal, scope, loops)
        kind, of_base = self.type_of(key, scope, loops), self.type_of(base, scope, loops)
        if of_base.kind == "list" and kind.kind in {"int", "any"}:
            return of_base.item or ANY
        if of_base.kind in {"map", "any"}:
            return ANY
        raise _error(node, f"{_described(of_base)} cannot be indexed by {_described(kind)}")

    def _member(self, node: Tree[Any] | Token, base: Tree[Any], field: str, scope: Scope, loops: int) -> Type:
        """Return the type of the field of an object, and record the read if the object is a root."""
        root = _root_of(base, scope)
        of_base = FIELDS[root] if root is not None else self.type_of(base, scope, loops)
        if of_base.kind in {"any", "map"}:
            return ANY
        if of_base.fields is None:
            raise _error(node, f"{_described(of_base)} has no field `{field}`")
        if field not in of_base.fields:
            raise _error(node, f"there is no field `{field}`; the fields are {_listed(of_base.fields)}")
        if root is not None:
            self.names.add(f"{root}.{field}")
        return of_base.fields[field]

    def _function(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        name, args = str(node.children[0]), _args(node)
        if name == "has":
            if len(args) != 1 or args[0].data != "select":
                raise _error(node, "`has` takes a field, such as has(request.tags.team)")
            self.type_of(args[0], scope, loops)
            return BOOL
        if name not in _FUNCTIONS:
            raise _error(
                node, f"there is no function `{name}`; the functions are {_listed({'has': BOOL} | _FUNCTIONS)}"
            )
        if len(args) != 1:
            raise _error(node, f"`{name}` takes one argument (got {len(args)})")
        kind = self.type_of(args[0], scope, loops).kind
        fits = {"string", "list", "map", "any"} if name == "size" else {"string", "any", *NUMBERS}
        if kind not in fits:
            raise _error(node, f"`{name}` does not take {_article(kind)}")
        return _FUNCTIONS[name]

    def _method(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        base, name, args = node.children[0], str(node.children[1]), _args(node)
        if name in _LOOPS:
            return self._loop(node, scope, loops)
        if name not in _METHODS:
            raise _error(node, f"there is no method `{name}`; the methods are {_listed([*_METHODS, *_LOOPS])}")
        if len(args) != (0 if name == "size" else 1):
            raise _error(node, f"`{name}` takes {'no argument' if name == 'size' else 'one argument'}")
        kind = self.type_of(base, scope, loops).kind
        if kind not in ({"string", "any"} if name != "size" else {"string", "list", "map", "any"}):
            raise _error(node, f"{_article(kind)} has no method `{name}`")
        if args and self.type_of(args[0], scope, loops).kind not in {"string", "any"}:
            raise _error(args[0], f"`{name}` takes a string")
        # A pattern from a request could be made to be slow.
        if name == "matches":
            if args[0].data != "string":
                raise _error(args[0], "`matches` takes a pattern in quotes")
            if loops > 1:
                raise _error(args[0], "`matches` may stand in one loop, not in two")
            self.patterns.append(cast("Token", args[0].children[0]))
        return _METHODS[name]

    def _loop(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        base, name, args = node.children[0], str(node.children[1]), _args(node)
        if loops >= MAX_NESTED_LOOPS:
            raise _error(node, f"at most {MAX_NESTED_LOOPS} of {_listed(_LOOPS)} may be nested")
        if len(args) != 2 or args[0].data != "name":
            raise _error(node, f"`{name}` takes a variable and an expression, such as x, x > 1")
        of_base = self.type_of(base, scope, loops)
        if of_base.kind not in {"list", "map", "any"}:
            raise _error(node, f"`{name}` is for lists and maps (got {_described(of_base)})")
        variable, item = str(args[0].children[0]), of_base.item if of_base.kind == "list" and of_base.item else ANY
        result = self.type_of(args[1], {**scope, variable: item}, loops + 1)
        if name == "map":
            return Type("list", item=result)
        if result.kind not in {"bool", "any"}:
            raise _error(args[1], f"the condition of `{name}` must be true or false (it is {_described(result)})")
        return of_base if name == "filter" else BOOL

    def _relation(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        left, sign, right = node.children
        one, two = self.type_of(left, scope, loops).kind, self.type_of(right, scope, loops).kind
        if "any" in {one, two} or (one == two and one != "object") or {one, two} <= NUMBERS:
            is_ordered = {one, two} <= {"any", "string", *NUMBERS}
            if str(sign) in {"==", "!="} or is_ordered:
                return BOOL
        elif "null" in {one, two} and str(sign) in {"==", "!="}:
            return BOOL
        raise _error(node, f"{_article(one)} and {_article(two)} cannot be compared by {sign}")

    def _membership(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        self.type_of(node.children[0], scope, loops)
        kind = self.type_of(node.children[2], scope, loops).kind
        if kind not in {"list", "map", "any"}:
            raise _error(node, f"`in` needs a list or a map (got {_article(kind)})")
        return BOOL

    def _arithmetic(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        left, sign, right = node.children
        one, two = self.type_of(left, scope, loops), self.type_of(right, scope, loops)
        if "any" in {one.kind, two.kind}:
            return ANY
        is_sum = str(sign) == "+" and one.kind in {"string", "list"}
        if one.kind != two.kind or not (one.kind in NUMBERS or is_sum):
            hint = "; convert one of them with double()" if {one.kind, two.kind} <= NUMBERS and one != two else ""
            raise _error(node, f"{_described(one)} and {_described(two)} cannot be combined by {sign}{hint}")
        return one

    def _logical(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        for side in node.children:
            self._check_bool(side, scope, loops)
        return BOOL

    def _negation(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        self._check_bool(node.children[0], scope, loops)
        return BOOL

    def _minus(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        result = self.type_of(node.children[0], scope, loops)
        if result.kind not in {"any", *NUMBERS}:
            raise _error(node, f"{_described(result)} has no negative")
        return result

    def _conditional(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        condition, yes, no = node.children
        self._check_bool(condition, scope, loops)
        one, two = self.type_of(yes, scope, loops), self.type_of(no, scope, loops)
        return one if one == two else ANY

    def _check_bool(self, node: Tree[Any], scope: Scope, loops: int) -> None:
        result = self.type_of(node, scope, loops)
        if result.kind not in {"bool", "any"}:
            raise _error(node, f"this must be true or false (it is {_described(result)})")

    def _list(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        kinds = [self.type_of(item, scope, loops) for item in _args(node)]
        return Type("list", item=kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else ANY)

    def _map(self, node: Tree[Any], scope: Scope, loops: int) -> Type:
        for entries in node.children:
            for item in entries.children:
                self.type_of(item, scope, loops)
        return Type("map")

    def _string(self, *_: object) -> Type:
        return STRING

    def _double(self, *_: object) -> Type:
        return DOUBLE

    def _int(self, *_: object) -> Type:
        return INT

    def _bool(self, *_: object) -> Type:
        return BOOL

    def _null(self, *_: object) -> Type:
        return NULL


def _args(node: Tree[Any]) -> list[Tree[Any]]:
    last: Any = node.children[-1] if node.children else None
    return list(last.children) if getattr(last, "data", None) == "args" else []


def _root_of(node: Tree[Any], scope: Scope) -> str | None:
    """Return the name of the root that `node` is, which must be followed by a field; None for anything else."""
    if node.data != "name" or (name := str(node.children[0])) in scope:
        return None
    return name if name in FIELDS and FIELDS[name].fields is not None else None


def _literal(node: Tree[Any]) -> str | None:
    """Return the text of a string without escapes; None for one with escapes."""
    text = str(node.children[0])
    return None if "\\" in text or text[0] in "rR" else text[1:-1]


def _error(node: Tree[Any] | Token, reason: str) -> BadExpressionError:
    meta: Any = node.meta if isinstance(node, Tree) else node
    return BadExpressionError(f"line {meta.line}, column {meta.column}: {reason}")


def _described(kind: Type) -> str:
    return _article(kind.kind)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}" if kind != "null" else "null"


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
