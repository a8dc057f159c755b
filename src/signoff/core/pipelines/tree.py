"""The tree of a pipeline: nested calls, each with its arguments in order."""

from __future__ import annotations

import msgspec

ConstantValue = str | int | float | bool | None


class Name(msgspec.Struct, frozen=True, tag="name"):
    """A bare name, which stands for an argument of the run."""

    name: str
    """Name of the argument."""


class Constant(msgspec.Struct, frozen=True, tag="given"):
    """A constant in the text of a pipeline."""

    value: ConstantValue
    """The value, as JSON has it."""


class Call(msgspec.Struct, frozen=True, tag="call", kw_only=True):
    """A call of a prompt, a function or a pipeline."""

    name: str
    """Name of the callee."""
    args: tuple[Arg, ...] = ()
    """Arguments, in the order of the text."""
    at: int = 0
    """Position of the call in the text, in characters from 0."""


class Arg(msgspec.Struct, frozen=True):
    """An argument of a call."""

    value: Call | Name | Constant
    """The value; that of a call is its result."""
    name: str | None = None
    """Name of the parameter; None for an argument by position."""
