"""Backlog: the jobs of a user that have not ended, which take space and wait for a worker or a reviewer."""

import msgspec


class Backlog(msgspec.Struct, frozen=True):
    """The unfinished jobs of one user."""

    jobs: int
    """Number of jobs."""
    size_bytes: int
    """Bytes of their requests, answers and metadata."""
