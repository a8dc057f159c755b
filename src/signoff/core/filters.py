"""Filters, cursors and pages of lists, which pass through every layer from a door to the store."""

from collections.abc import Iterable
from itertools import accumulate
from typing import TypeVar

import msgspec

from signoff.core.job import Status
from signoff.core.pipelines.composed import LibraryItemKind

T = TypeVar("T")
# A page ends with the item by which it reaches this size, so that no list takes much memory.
MAX_PAGE_BYTES = 8 * 1024 * 1024


class Page(list[T]):
    """A page of a list."""

    may_continue: bool
    """True if another page may follow; its cursor is the last item of this one."""

    def __init__(self, items: Iterable[T] = (), *, may_continue: bool = False) -> None:
        super().__init__(items)
        self.may_continue = may_continue


def page_length(sizes: Iterable[int], max_bytes: int) -> int:
    """Return the number of items of these sizes that a page has: it ends with the one that reaches `max_bytes`.

    >>> page_length([5, 5, 5], 6), page_length([50], 6), page_length([5], 6)
    (2, 1, 1)
    """
    number = 0
    for number, size_bytes in enumerate(accumulate(sizes), start=1):  # noqa: B007 -- the last number is the result
        if size_bytes >= max_bytes:
            break
    return number


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs to list or count; the conditions are joined by AND."""

    user_id: int | None = None
    """Id of the owner; None for the jobs of all users."""
    status: Status | None = None
    """Status of the jobs; None for any."""
    fingerprint: str | None = None
    """Fingerprint of the request (`core.fingerprint`); None for any."""
    upstream_object_id: str | None = None
    """Id of the object that the upstream stored for the job; None for any."""
    after_id: str | None = None
    """Cursor: the id of the last job of the previous page. Ids are ordered by time. None for the first page."""
    offset: int = 0
    """Number of jobs to skip before the first one."""
    limit: int = 50
    """Maximum number of jobs in the list."""
    max_bytes: int = MAX_PAGE_BYTES
    """Bytes of requests and answers with which the list ends."""
    newest_first: bool = False
    """True to order the list from the newest job to the oldest."""
    with_steps: bool = True
    """False to leave out jobs that are steps of another job's run."""
    with_copies: bool = False
    """True to include the copies for reviewers of the owner's jobs, which are none of the owner's jobs."""


class LibraryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts and pipelines to list, in the order of their names; the conditions are joined by AND."""

    kind: LibraryItemKind | None = None
    """`prompt` or `pipeline`; None for both."""
    user_id: int | None = None
    """Id of a user, whose own and shared items are listed; None for the items of all users."""
    after: str = ""
    """Cursor: the name of the last item of the previous page."""
    calls: str | None = None
    """Name of an item. Only pipelines that call it in their newest or in a labeled version are listed."""
    limit: int = 50
    """Maximum number of items in the list."""
    max_bytes: int = MAX_PAGE_BYTES
    """Bytes of texts with which the list ends."""
