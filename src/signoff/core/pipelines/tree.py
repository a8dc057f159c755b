"""A pipeline as data: nested calls, each with its arguments in order."""

from __future__ import annotations

import msgspec

Literal = str | int | float | bool | None


class Name(msgspec.Struct, frozen=True, tag="name"):
    """An argument that is filled in when the pipeline runs."""

    name: str


class Given(msgspec.Struct, frozen=True, tag="given"):
    """A value that is written in the pipeline itself."""

    value: Literal


class Call(msgspec.Struct, frozen=True, tag="call", kw_only=True):
    """A call of a prompt, a function or a pipeline by its name. `at` is where it begins in the text, from 0."""

    name: str
    args: tuple[Arg, ...] = ()
    at: int = 0


class Arg(msgspec.Struct, frozen=True):
    """One argument of a call, named or by its place."""

    value: Call | Name | Given
    name: str | None = None
