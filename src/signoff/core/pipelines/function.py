"""A Python function that pipelines may call: its name, what it takes, and where it stands."""

from __future__ import annotations

import msgspec

from signoff.core.pipelines.coerce import ParamType


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a function takes. `default` is its JSON text, where it has one that can be JSON."""

    name: str
    reads: ParamType = "any"
    has_default: bool = False
    default: str | None = None


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function of the module `module`; `digest` is that of the file in which it was found."""

    name: str
    params: tuple[Param, ...] = ()
    doc: str = ""
    module: str = "builtins"
    is_async: bool = False
    digest: str = ""
