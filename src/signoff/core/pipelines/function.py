"""Python functions that pipelines can call: name, parameters, and origin."""

import msgspec

from signoff.core.pipelines.coerce import ParamType


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a function."""

    name: str
    """Name of the parameter."""
    type: ParamType = "any"
    """Type that its annotation declares, as in JSON Schema."""
    has_default: bool = False
    """True if the argument can be left out."""
    default: str | None = None
    """JSON text of the default value; None if there is none, or it has no JSON form."""


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A registered function."""

    name: str
    """Name that pipelines call it by."""
    params: tuple[Param, ...] = ()
    """Parameters in their order."""
    doc: str = ""
    """Docstring of the function."""
    module: str = "builtins"
    """Module that defines it."""
    is_async: bool = False
    """True if it is a coroutine function."""
    digest: str = ""
    """Digest of the file that defines it; it changes when the file is edited."""
