"""Prompts and pipelines: what callers save under a name, in numbered versions."""

from __future__ import annotations

from typing import Literal

import msgspec

from signoff.core.pipelines.tree import Call


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a text with placeholders, for a model (None: the default one). `user_id` owns all its versions.

    `labels` are those that name this very version; `message` says what changed. `created_at` is in microseconds.
    """

    name: str
    body: str
    model: str | None = None
    user_id: int
    shared: bool = False
    message: str = ""
    id: int = 0
    version: int = 0
    labels: tuple[str, ...] = ()
    created_at: int = 0


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """A version of nested calls, as a text and as a tree. The rest is as with a prompt."""

    name: str
    body: str
    tree: Call
    user_id: int
    shared: bool = False
    message: str = ""
    id: int = 0
    version: int = 0
    labels: tuple[str, ...] = ()
    created_at: int = 0


LibraryItem = Prompt | Pipeline


LibraryItemKind = Literal["prompt", "pipeline"]


# The label that calls go by.
PRODUCTION = "production"
