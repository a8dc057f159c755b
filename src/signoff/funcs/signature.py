"""Converting: a Python function as pipelines see it, which reads its arguments as its annotations say."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from signoff.core.pipelines.coerce import ParamType, coerce, to_text
from signoff.core.pipelines.function import Function, Param

_READS: dict[object, ParamType] = {
    str: "text",
    int: "whole",
    float: "number",
    bool: "truth",
    list: "list",
    tuple: "list",
    Sequence: "list",
    dict: "object",
    Mapping: "object",
}
_STARRED = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def describe_function(python: Callable[..., Any], *, name: str, module: str, digest: str) -> Function:
    """What pipelines must know of `python`. Raises ValueError where they could not call it."""
    hints, params = _hints(python), list[Param]()
    for parameter in inspect.signature(python).parameters.values():
        if parameter.kind in _STARRED:
            raise ValueError(f"{name} takes {_STARRED[parameter.kind]}{parameter.name}; a pipeline cannot give that")
        has_default = parameter.default is not inspect.Parameter.empty
        default = _shown(parameter.default) if has_default else None
        reads = _reads(hints.get(parameter.name))
        params.append(Param(name=parameter.name, reads=reads, has_default=has_default, default=default))
    return Function(
        name=name,
        params=tuple(params),
        doc=inspect.getdoc(python) or "",
        module=module,
        is_async=inspect.iscoroutinefunction(python),
        digest=digest,
    )


def with_coercion(function: Function) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the Python of `function`: each argument is read as its annotation says, before it gets it.

    What a pipeline may leave out keeps its default.
    """
    reads: dict[str, ParamType] = {param.name: param.reads for param in function.params}

    def decorate(python: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(python)

        @functools.wraps(python)
        def wrapped(*args: object, **kwargs: object) -> Any:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                bound.arguments[name] = _read(name, value, reads[name])
            return python(*bound.args, **bound.kwargs)

        return wrapped

    return decorate


def call_with(function: Callable[..., Any], args: Mapping[str, object]) -> Any:
    """Calls it with arguments by their names, those that take no name too."""
    places = inspect.signature(function).parameters
    bare = [name for name, place in places.items() if place.kind is place.POSITIONAL_ONLY and name in args]
    return function(*[args[name] for name in bare], **{name: args[name] for name in args if name not in bare})


def _read(name: str, value: object, reads: ParamType) -> Any:
    try:
        return coerce(value, reads)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _reads(hint: object) -> ParamType:
    """How an argument with that annotation is read; one that may be None as well, as what it is otherwise."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        kinds: set[ParamType] = {_reads(choice) for choice in typing.get_args(hint) if choice is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "any"
    return _READS.get(typing.get_origin(hint) or hint, "any")


def _hints(python: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(python)
    except Exception:  # noqa: BLE001 -- an annotation may be anything at all; then only plain ones count
        return dict(getattr(python, "__annotations__", {}))


def _shown(default: object) -> str | None:
    try:
        return to_text(default) if not isinstance(default, str) else to_text([default])[1:-1]
    except ValueError:
        return None
