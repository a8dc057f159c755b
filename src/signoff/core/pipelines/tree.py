"""The tree of a pipeline: nested calls, each with its arguments in order."""

from __future__ import annotations

import msgspec

ConstantValue = str | int | float | bool | None


class Name(msgspec.Struct, frozen=True, tag="name"):
    """A bare name, which stands for an argument of the run."""

    name: str


class Constant(msgspec.Struct, frozen=True, tag="given"):
    """A literal value."""

    value: ConstantValue


class Call(msgspec.Struct, frozen=True, tag="call", kw_only=True):
    """A call of a prompt, a function or a pipeline."""

    name: str
    """Name of the callee."""
    args: tuple[Arg, ...] = ()
    at: int = 0
    """Position of the call in the text, in characters from 0."""


class Arg(msgspec.Struct, frozen=True):
    """An argument of a call, by name or (with the name None) by position."""

    value: Call | Name | Constant
    name: str | None = None
