"""Prompts and pipelines, which users save under a name in numbered versions."""

from typing import Literal

import msgspec

from signoff.core.pipelines.tree import Call
from signoff.errors import Conflict


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a prompt: a text with placeholders for a model."""

    name: str
    """Name that is shared by all versions."""
    body: str
    """Template with `{name}` placeholders."""
    model: str | None = None
    """Name of the model it is for; None for the default model."""
    user_id: int
    """Owner of all versions."""
    shared: bool = False
    """True if every user may call it."""
    message: str = ""
    """Description of the change in this version."""
    id: int = 0
    """Id that is shared by all versions; 0 until it is saved."""
    version: int = 0
    """Number of the version, from 1; 0 until it is saved."""
    labels: tuple[str, ...] = ()
    """Labels that point to this version."""
    created_at: int = 0
    """Time at which the version was saved; microseconds since 1970, UTC."""


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a pipeline of nested calls. The fields without a description are as in `Prompt`."""

    name: str
    body: str
    """Text of the outermost call."""
    tree: Call
    """The parsed `body`."""
    user_id: int
    shared: bool = False
    message: str = ""
    id: int = 0
    version: int = 0
    labels: tuple[str, ...] = ()
    created_at: int = 0


LibraryItem = Prompt | Pipeline
# Bounds for all prompts and pipelines of one user, in all of their versions.
MAX_VERSIONS_OF_USER = 100_000
MAX_CHARACTERS_OF_USER = 256 * 1024 * 1024
LibraryItemKind = Literal["prompt", "pipeline"]
# Label of the version that calls without a version use.
PRODUCTION = "production"


def check_library_size(versions: int, characters: int) -> None:
    """Raise Conflict if a user would have more versions, or more characters in them, than one user may have."""
    if versions > MAX_VERSIONS_OF_USER:
        raise Conflict(
            f"A user may have at most {MAX_VERSIONS_OF_USER} versions of prompts and pipelines; remove some of them."
        )
    if characters > MAX_CHARACTERS_OF_USER:
        raise Conflict(
            f"A user may have at most {MAX_CHARACTERS_OF_USER} characters in all versions of prompts and pipelines; "
            "remove some of them."
        )
