"""Lists and pages of the native API."""

from typing import Generic, TypedDict, TypeVar

T = TypeVar("T")


class ObjectList(TypedDict, Generic[T]):
    """List of all objects."""

    data: list[T]
    """Objects of the list."""


class ListPage(TypedDict, Generic[T]):
    """Page of a list."""

    data: list[T]
    """Objects of the page."""
    next: str | int | None
    """Cursor of the next page, for the query; null on the last page."""
