"""Check: whether a pipeline's calls fit what they call, before anything runs.

A function takes its arguments by place or by name, as in Python. A prompt, or a pipeline, with one argument takes the
only one it gets, whatever that is called; with several it takes names, or bare names that are its own.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from signoff.core.pipelines.composed import Pipeline, Prompt
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.grammar import arguments_of, calls_of
from signoff.core.pipelines.names import join_names
from signoff.core.pipelines.template import placeholders
from signoff.core.pipelines.tree import Arg, Call, Given, Name
from signoff.errors import BadPipeline

MAX_NESTED = 20
MAX_CALLS_IN_ALL = 10_000
Callee = Prompt | Pipeline | Function
Known = Callable[[str], Callee | None]
Value = Call | Name | Given


def check_calls(body: str, tree: Call, known: Known, *, own_name: str | None = None) -> None:
    """Raises BadPipeline for the first flaw of `tree`, which is what `body` says: a name that nobody knows, arguments
    that do not fit, a pipeline that comes back to itself. `own_name` is what the pipeline is, or will be, called.
    """
    path = () if own_name is None else (own_name,)
    try:
        _CallChecker(known).examine(tree, path)
    except BadPipeline as error:
        raise BadPipeline.at_position(error.message, body, error.at) from None


def bind_arguments(call: Call, callee: Callee) -> dict[str, Value]:
    """Which value goes to which of the callee's arguments. Raises BadPipeline, at the call."""
    try:
        return _to_function(call, callee) if isinstance(callee, Function) else _to_names(call, parameter_names(callee))
    except _ArgumentMismatch as unfit:
        raise BadPipeline(f"`{call.name}` {unfit}", at=call.at) from None


def parameter_names(callee: Callee) -> tuple[str, ...]:
    """What it can be given, in order."""
    match callee:
        case Prompt():
            return placeholders(callee.body)
        case Pipeline():
            return arguments_of(callee.tree)
        case Function():
            return tuple(param.name for param in callee.params)


class _ArgumentMismatch(Exception):
    """Why the arguments of a call do not fit, after its name."""


def _to_function(call: Call, function: Function) -> dict[str, Value]:
    names = parameter_names(function)
    by_place = [arg for arg in call.args if arg.name is None]
    if any(arg.name is None for arg in call.args[len(by_place) :]):
        raise _ArgumentMismatch("has an argument without a name after one with a name")
    if len(call.args) > len(names):
        raise _ArgumentMismatch(f"takes {_count(len(names))}, not {len(call.args)}")
    given = [(name, arg.value) for name, arg in zip(names, by_place, strict=False)]
    given += [(arg.name, arg.value) for arg in call.args if arg.name is not None]
    values = _check_unique(given, names)
    _check_complete(values, [param.name for param in function.params if not param.has_default])
    return values


def _to_names(call: Call, names: tuple[str, ...]) -> dict[str, Value]:
    if len(call.args) > len(names):
        raise _ArgumentMismatch(f"takes {_count(len(names))}, not {len(call.args)}")
    if len(names) == 1 and len(call.args) == 1 and call.args[0].name is None:
        return {names[0]: call.args[0].value}
    values = _check_unique([(_name_for(arg, names), arg.value) for arg in call.args], names)
    _check_complete(values, list(names))
    return values


def _name_for(arg: Arg, names: tuple[str, ...]) -> str:
    """Which name an argument is for."""
    if arg.name is not None:
        return arg.name
    if isinstance(arg.value, Name) and arg.value.name in names:
        return arg.value.name
    raise _ArgumentMismatch(f"takes {join_names(names)}: say by its name which one is meant")


def _check_unique(given: list[tuple[str, Value]], names: tuple[str, ...]) -> dict[str, Value]:
    values = dict[str, Value]()
    for name, value in given:
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
    """How many calls a run of a tree makes, and how many pipelines stand in each other."""

    calls: int
    nested: int = 1


class _CallChecker:
    """Looks at each pipeline once, however often it is called. Raises BadPipeline, at the call that cannot be."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._seen: dict[str, _TreeSize] = {}

    def examine(self, tree: Call, path: tuple[str, ...]) -> _TreeSize:
        calls = calls_of(tree)
        found = _TreeSize(len(calls))
        for call in calls:
            callee = self._known(call.name)
            if callee is None:
                raise BadPipeline(f"there is no prompt, function or pipeline `{call.name}`", at=call.at)
            bind_arguments(call, callee)
            if isinstance(callee, Pipeline):
                self._enter(call, callee, path, found)
        if found.calls > MAX_CALLS_IN_ALL:
            raise BadPipeline(f"a run would make more than {MAX_CALLS_IN_ALL} calls", at=tree.at)
        return found

    def _enter(self, call: Call, callee: Pipeline, path: tuple[str, ...], found: _TreeSize) -> None:
        if callee.name in path:
            way = " → ".join([*path[path.index(callee.name) :], callee.name])
            raise BadPipeline(f"`{call.name}` comes back to itself: {way}", at=call.at)
        if len(path) >= MAX_NESTED:
            raise _too_deep(call)
        try:
            inner = self._seen.get(callee.name) or self.examine(callee.tree, (*path, callee.name))
        except BadPipeline as error:
            raise BadPipeline(f"`{call.name}` cannot run: {error.message}", at=call.at) from None
        self._seen[callee.name] = inner
        if len(path) + inner.nested > MAX_NESTED:
            raise _too_deep(call)
        found.calls = min(found.calls + inner.calls, MAX_CALLS_IN_ALL + 1)
        found.nested = max(found.nested, 1 + inner.nested)


def _too_deep(call: Call) -> BadPipeline:
    return BadPipeline(f"more than {MAX_NESTED} pipelines stand in each other", at=call.at)
