"""Signatures of Python functions as pipelines see them, and conversion of arguments as annotated."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from signoff.core.pipelines.coerce import ParamType, coerce, to_text
from signoff.core.pipelines.function import Function, Param

_PARAM_TYPES: dict[object, ParamType] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    tuple: "array",
    Sequence: "array",
    dict: "object",
    Mapping: "object",
}
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def describe_function(python: Callable[..., Any], *, name: str, module: str, digest: str) -> Function:
    """Return the signature of `python` for pipelines. Raises ValueError if a pipeline could not call it."""
    hints, params = _hints(python), list[Param]()
    for parameter in inspect.signature(python).parameters.values():
        if parameter.kind in _VARIADIC:
            starred = f"{_VARIADIC[parameter.kind]}{parameter.name}"
            raise ValueError(f"{name} takes {starred}; pipelines support only named parameters")
        has_default = parameter.default is not inspect.Parameter.empty
        default = _default_text(parameter.default) if has_default else None
        param_type = _param_type(hints.get(parameter.name))
        params.append(Param(name=parameter.name, type=param_type, has_default=has_default, default=default))
    return Function(
        name=name,
        params=tuple(params),
        doc=inspect.getdoc(python) or "",
        module=module,
        is_async=inspect.iscoroutinefunction(python),
        digest=digest,
    )


def with_coercion(python: Callable[..., Any], function: Function) -> Callable[..., Any]:
    """Return `python` with each argument converted as `function` declares; a missing argument keeps its default."""
    signature = inspect.signature(python)
    param_types: dict[str, ParamType] = {param.name: param.type for param in function.params}

    @functools.wraps(python)
    def wrapper(*args: object, **kwargs: object) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _coerce(name, value, param_types[name])
        return python(*bound.args, **bound.kwargs)

    return wrapper


def call_with(function: Callable[..., Any], args: Mapping[str, object]) -> Any:
    """Call `function` with arguments by name; positional-only parameters are passed by position."""
    parameters = inspect.signature(function).parameters
    leading = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_ONLY and name in args]
    return function(*[args[name] for name in leading], **{name: args[name] for name in args if name not in leading})


def _coerce(name: str, value: object, param_type: ParamType) -> Any:
    try:
        return coerce(value, param_type)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _param_type(hint: object) -> ParamType:
    """Return the type to which an argument with that annotation is converted. `X | None` is converted as X."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        kinds: set[ParamType] = {_param_type(choice) for choice in typing.get_args(hint) if choice is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "any"
    return _PARAM_TYPES.get(typing.get_origin(hint) or hint, "any")


def _hints(python: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(python)
    except Exception:  # noqa: BLE001 -- an annotation may be any expression; then only plain types are used
        return dict(getattr(python, "__annotations__", {}))


def _default_text(default: object) -> str | None:
    try:
        return to_text(default) if not isinstance(default, str) else to_text([default])[1:-1]
    except ValueError:
        return None
