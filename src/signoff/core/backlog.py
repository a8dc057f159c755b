"""Backlogs: jobs of a user that have not ended, jobs that wait for a worker, and deliveries that wait to be sent."""

import msgspec

from signoff.core.delivery import DeliveryKind


class Backlog(msgspec.Struct, frozen=True):
    """The unfinished jobs of one user."""

    jobs: int
    """Number of jobs."""
    size_bytes: int
    """Bytes of their requests, answers and metadata."""


class JobQueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """The due jobs that no worker has claimed, of the owners with one role."""

    owner: str
    """Role of the owners; `none` for those without a user."""
    jobs: int
    """Number of jobs, counted up to a bound."""
    oldest_seconds: float
    """Time for which the oldest one has been due."""


class DeliveryDepth(msgspec.Struct, frozen=True, kw_only=True):
    """The deliveries of a kind that are neither received nor given up."""

    kind: DeliveryKind
    """Kind of the deliveries."""
    pending: int
    """Number of deliveries, counted up to a bound."""
    overdue_seconds: float
    """Time for which the next attempt of the oldest one has been due; 0 if none is due."""
