"""Validation of the calls of a pipeline against their callees, before anything runs.

A function takes arguments by position or by name, as in Python. A prompt or pipeline with one parameter takes its only
argument without a name; with several, each argument has a name, or is a bare name that equals that of a parameter.
"""

from collections.abc import Callable

import msgspec

from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import arguments_of, calls_of
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.template import placeholders
from signoff.core.pipelines.tree import Arg, Call, Constant, Name
from signoff.errors import BadPipeline

MAX_NESTED = 20
MAX_CALLS_IN_ALL = 10_000
Callee = Prompt | Pipeline | Function
Known = Callable[[str], Callee | None]
Value = Call | Name | Constant


def check_calls(body: str, tree: Call, known: Known, *, own_name: str | None = None) -> None:
    """Check all calls of a pipeline, and of the pipelines that it calls.

    Args:
        body: Text of the pipeline, for positions in messages.
        tree: The parsed `body`.
        known: Function that returns the callee of a name, or None.
        own_name: Name of the pipeline, if it has one.

    Raises:
        BadPipeline: a name is unknown, arguments do not fit, a pipeline calls itself, or a run would be too large.
    """
    path = () if own_name is None else (own_name,)
    try:
        _CallChecker(known).check(tree, path)
    except BadPipeline as error:
        raise BadPipeline.at_position(error.message, body, error.at) from None


def bind_arguments(call: Call, callee: Callee) -> dict[str, Value]:
    """Return the value of each parameter of `callee`. Raises BadPipeline, at the position of the call."""
    try:
        is_function = isinstance(callee, Function)
        return _bind_function(call, callee) if is_function else _bind_names(call, parameter_names(callee))
    except _ArgumentMismatch as mismatch:
        raise BadPipeline(f"`{call.name}` {mismatch}", at=call.at) from None


def parameter_names(callee: Callee) -> tuple[str, ...]:
    """Return the names of the parameters of `callee`, in order."""
    match callee:
        case Prompt():
            return placeholders(callee.body)
        case Pipeline():
            return arguments_of(callee.tree)
        case Function():
            return tuple(param.name for param in callee.params)


class _ArgumentMismatch(Exception):
    """The arguments of a call do not fit; the message continues a sentence that begins with the name of the callee."""


def _bind_function(call: Call, function: Function) -> dict[str, Value]:
    names = parameter_names(function)
    positional = [arg for arg in call.args if arg.name is None]
    if any(arg.name is None for arg in call.args[len(positional) :]):
        raise _ArgumentMismatch("has an argument without a name after one with a name; move it to the front")
    if len(call.args) > len(names):
        raise _ArgumentMismatch(f"takes {_count(len(names))}, not {len(call.args)}")
    pairs = [(name, arg.value) for name, arg in zip(names, positional, strict=False)]
    pairs += [(arg.name, arg.value) for arg in call.args if arg.name is not None]
    values = _check_unique(pairs, names)
    _check_complete(values, [param.name for param in function.params if not param.has_default])
    return values


def _bind_names(call: Call, names: tuple[str, ...]) -> dict[str, Value]:
    if len(call.args) > len(names):
        raise _ArgumentMismatch(f"takes {_count(len(names))}, not {len(call.args)}")
    if len(names) == 1 and len(call.args) == 1 and call.args[0].name is None:
        return {names[0]: call.args[0].value}
    values = _check_unique([(_name_for(arg, names), arg.value) for arg in call.args], names)
    _check_complete(values, list(names))
    return values


def _name_for(arg: Arg, names: tuple[str, ...]) -> str:
    """Return the name of the parameter that an argument is for."""
    if arg.name is not None:
        return arg.name
    if isinstance(arg.value, Name) and arg.value.name in names:
        return arg.value.name
    raise _ArgumentMismatch(f"takes {join_names(names)}; write NAME=VALUE for each argument")


def _check_unique(pairs: list[tuple[str, Value]], names: tuple[str, ...]) -> dict[str, Value]:
    values = dict[str, Value]()
    for name, value in pairs:
        if name not in names:
            raise _ArgumentMismatch(f"has no argument {name!r}; it takes {join_names(names) or 'none'}")
        if name in values:
            raise _ArgumentMismatch(f"gets {name!r} twice")
        values[name] = value
    return values


def _check_complete(values: dict[str, Value], needed: list[str]) -> None:
    missing = [name for name in needed if name not in values]
    if missing:
        raise _ArgumentMismatch(f"lacks {join_names(missing)}")


def _count(number: int) -> str:
    return {0: "no arguments", 1: "1 argument"}.get(number, f"{number} arguments")


class _TreeSize(msgspec.Struct):
    """Size of a run of a tree."""

    calls: int
    """Number of calls, with those of the pipelines it calls."""
    nested: int = 1
    """Depth of nested pipelines; 1 for a pipeline that calls no other."""


class _CallChecker:
    """A check of a tree that visits each called pipeline once. Raises BadPipeline, at the position of the fault."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._sizes: dict[str, _TreeSize] = {}

    def check(self, tree: Call, path: tuple[str, ...]) -> _TreeSize:
        calls = calls_of(tree)
        size = _TreeSize(len(calls))
        for call in calls:
            callee = self._known(call.name)
            if callee is None:
                raise BadPipeline(f"there is no prompt, function or pipeline `{call.name}`", at=call.at)
            bind_arguments(call, callee)
            if isinstance(callee, Pipeline):
                self._check_nested(call, callee, path, size)
        if size.calls > MAX_CALLS_IN_ALL:
            raise BadPipeline(f"a run would make more than {MAX_CALLS_IN_ALL} calls", at=tree.at)
        return size

    def _check_nested(self, call: Call, callee: Pipeline, path: tuple[str, ...], size: _TreeSize) -> None:
        if callee.name in path:
            cycle = " → ".join([*path[path.index(callee.name) :], callee.name])
            raise BadPipeline(f"`{call.name}` calls itself: {cycle}", at=call.at)
        if len(path) >= MAX_NESTED:
            raise _too_deep(call)
        try:
            inner = self._sizes.get(callee.name) or self.check(callee.tree, (*path, callee.name))
        except BadPipeline as error:
            raise BadPipeline(f"`{call.name}` cannot run: {error.message}", at=call.at) from None
        self._sizes[callee.name] = inner
        if len(path) + inner.nested > MAX_NESTED:
            raise _too_deep(call)
        size.calls = min(size.calls + inner.calls, MAX_CALLS_IN_ALL + 1)
        size.nested = max(size.nested, 1 + inner.nested)


def _too_deep(call: Call) -> BadPipeline:
    return BadPipeline(f"pipelines are nested more than {MAX_NESTED} deep", at=call.at)
