"""Filters and cursors of lists, which pass through every layer from a door to the store."""

import msgspec

from signoff.core.job import Status
from signoff.core.pipelines.composed import LibraryItemKind


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
    newest_first: bool = False
    """True to order the list from the newest job to the oldest."""
    with_steps: bool = True
    """False to leave out jobs that are steps of another job's run."""


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
