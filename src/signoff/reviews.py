"""Interfaces of the store for reviews: held answers in the order of the desk, votes, queues and bulk decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from signoff.core.filters import Page
from signoff.core.job import Job, Vote
from signoff.core.reviews.bulk import Bulk
from signoff.core.reviews.notices import Notice, NoticeOutcome, QueueNews
from signoff.core.reviews.queues import DecisionRecord, NextReview, ReviewFilter, ReviewQueue, VoteRecord


class Reviews(Protocol):
    """Held answers without a verdict, in the order of `rank_of`, and what reviewers have decided."""

    async def open_next(self, query: NextReview, *, actor: str, lease_seconds: float) -> Job | None:
        """Make the transition `open` of the first answer that nobody has open; return its job, None if none is left.

        Answers that are assigned to the reviewer come first, those assigned to others never, nor those on which the
        reviewer has voted in this round. Concurrent calls never get the same job. The number of held answers does not
        matter.
        """
        ...

    async def list(self, filters: ReviewFilter) -> Page[Job]:
        """Return a page of held answers."""
        ...

    async def held_queues(self, limit: int) -> list[str]:
        """Return the names of up to `limit` queues that have held answers, in alphabetical order."""
        ...

    async def depth(self, queue: str, *, at_most: int) -> tuple[int, int | None]:
        """Return the number of answers in a queue, counted up to `at_most`, and the earliest `held_at`."""
        ...

    async def votes(self, job_id: str, review_round: int) -> list[Vote]:
        """Return the blind votes of a round of a job, the earliest first."""
        ...

    async def blind_votes(self, limit: int) -> list[VoteRecord]:
        """Return the latest blind votes on all jobs, the newest first."""
        ...

    async def verdicts_of(self, reviewer: str, *, after: tuple[int, str] | None, limit: int) -> list[VoteRecord]:
        """Return verdicts of a reviewer, newest first; `after` is the time and the job of the last one before."""
        ...

    async def decisions(self, job_ids: Sequence[str]) -> list[DecisionRecord]:
        """Return the decisions of all rounds of some jobs, by job and round."""
        ...

    async def add_bulk(self, bulk: Bulk) -> None:
        """Store a bulk decision. Those of more than a day ago are deleted meanwhile."""
        ...

    async def bulk(self, bulk_id: str) -> Bulk | None:
        """Return a bulk decision; None if there is none with this id."""
        ...

    async def advance_bulk(self, bulk: Bulk) -> Bulk:
        """Store the states of the items of a bulk decision, as `advanced` does, and return it as it is stored then."""
        ...


class ReviewQueues(Protocol):
    """Review queues and their members, and the reasons for rejections. Changes are in the audit log."""

    async def all(self) -> list[ReviewQueue]:
        """Return all queues in the order of their names."""
        ...

    async def get(self, name: str) -> ReviewQueue | None:
        """Return a queue; None if there is none with this name."""
        ...

    async def of_member(self, email: str) -> list[str]:
        """Return the names of the queues that a reviewer belongs to, in alphabetical order."""
        ...

    async def put(self, queue: ReviewQueue) -> None:
        """Store a queue, in place of one with the same name. Raises Conflict if there would be too many."""
        ...

    async def drop(self, name: str) -> bool:
        """Delete a queue; return False if there is none. Its held answers stay in it, and admins see them."""
        ...

    async def reasons(self) -> list[str]:
        """Return the reasons for rejections that reviewers may choose from, in order."""
        ...

    async def put_reasons(self, reasons: Sequence[str]) -> None:
        """Replace the reasons for rejections."""
        ...

    async def news(self, *, lag_seconds: float) -> list[QueueNews]:
        """Return what has happened in queues with a receiver since their last digest, for those that are due.

        The period ends `lag_seconds` ago: what was committed later than that for an earlier time would be missed.
        """
        ...

    async def add_notices(self, news: QueueNews, notices: Sequence[Notice]) -> bool:
        """Store digests and the end of what they report, in one transaction; return False if another process did."""
        ...

    async def claim_notices(self, *, lease: str, limit: int, lease_seconds: float) -> list[Notice]:
        """Lease up to `limit` due digests, and return them; their attempts are incremented."""
        ...

    async def settle_notice(self, notice_id: str, lease: str, outcome: NoticeOutcome) -> None:
        """Record the outcome of an attempt: delete the digest, or make it due again."""
        ...
