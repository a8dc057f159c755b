"""In-memory held answers, votes, review queues and digests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from signoff.core.audit import AuditChange, change_of
from signoff.core.filters import Page, page_length
from signoff.core.job import Job, Vote
from signoff.core.reviews.bulk import Bulk, advanced
from signoff.core.reviews.notices import MAX_NAMED, NewsItem, Notice, NoticeOutcome, QueueNews
from signoff.core.reviews.queues import (
    MAX_QUEUES,
    DecisionRecord,
    NextReview,
    ReviewFilter,
    ReviewQueue,
    VoteRecord,
    place_of,
    rank_of,
)
from signoff.core.times import SECOND_US
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.store import TransitionRequest
from signoff.stores.reviews import BULK_LIFETIME_US
from simulation.jobs import MemoryJobs
from simulation.tables import Connection, Tables, Tx, bump, record


class MemoryReviews:
    """In-memory implementation of `reviews.Reviews`."""

    def __init__(self, tables: Tables, connection: Connection, jobs: MemoryJobs) -> None:
        self._tables = tables
        self._connection = connection
        self._jobs = jobs

    async def open_next(self, query: NextReview, *, actor: str, lease_seconds: float) -> Job | None:
        def open_first(tx: Tx) -> Job | None:
            free = [job for job in self._waiting() if self._may_open(job, query, tx.now)]
            if not free:
                return None
            job = min(free, key=lambda job: (job.assignee is None, rank_of(job), job.id))
            request = TransitionRequest(
                verb="open",
                actor=actor,
                round=job.round,
                reviewer=query.reviewer,
                changes={"review_lease": query.reviewer},
                after_seconds={"review_lease_until": lease_seconds},
            )
            return self._jobs.apply(tx, job.id, request)

        return await self._connection.send(open_first, writes=True)

    def _waiting(self) -> Iterator[Job]:
        return (job for job in self._tables.unfinished.values() if job.status == "human" and job.release_at is None)

    def _may_open(self, job: Job, query: NextReview, now: int) -> bool:
        is_free = job.review_lease is None or (job.review_lease_until or now) < now
        is_theirs = job.assignee == query.reviewer
        is_in_queue = job.assignee is None and (job.review_queue or "") in query.queues
        has_voted = (job.id, job.round, query.reviewer) in self._tables.votes
        is_left_out = job.user_id == query.not_user_id or job.id in query.skip
        return is_free and (is_theirs or is_in_queue) and not has_voted and not is_left_out

    async def list(self, filters: ReviewFilter) -> Page[Job]:
        def read(tx: Tx) -> Page[Job]:
            held = [job for job in self._waiting() if (job.review_queue or "") in filters.queues]
            held = [job for job in held if filters.target in {None, job.target}]
            held = [job for job in held if filters.assignee in {None, job.assignee}]
            if filters.min_age_seconds is not None:
                before = tx.now - round(filters.min_age_seconds * SECOND_US)
                held = [job for job in held if job.held_at is not None and job.held_at <= before]
            held = sorted(held, key=lambda job: place_of(job, filters.order), reverse=filters.order == "newest")
            if filters.after is not None:
                places = [place_of(job, filters.order) for job in held]
                is_later = [
                    place < filters.after if filters.order == "newest" else place > filters.after for place in places
                ]
                held = list(itertools.compress(held, is_later))
            matching = held[: filters.limit]
            sizes = (len(job.body) + len(job.metadata) + len(job.response or b"") for job in matching)
            page = matching[: page_length(sizes, filters.max_bytes)]
            return Page(page, may_continue=len(page) < len(matching) or 0 < len(matching) == filters.limit)

        return await self._connection.send(read, writes=False)

    async def held_queues(self, limit: int) -> list[str]:
        def read(_: Tx) -> list[str]:
            return sorted({job.review_queue or "" for job in self._waiting()})[:limit]

        return await self._connection.send(read, writes=False)

    async def depth(self, queue: str, *, at_most: int) -> tuple[int, int | None]:
        def read(_: Tx) -> tuple[int, int | None]:
            held = [job for job in self._waiting() if (job.review_queue or "") == queue]
            return min(len(held), at_most), min((job.held_at for job in held if job.held_at is not None), default=None)

        return await self._connection.send(read, writes=False)

    async def votes(self, job_id: str, review_round: int) -> list[Vote]:
        def read(_: Tx) -> list[Vote]:
            votes = [vote for key, vote in self._tables.blind.items() if key[:2] == (job_id, review_round)]
            return sorted(votes, key=lambda vote: (vote.at, vote.decision.reviewer))

        return await self._connection.send(read, writes=False)

    async def blind_votes(self, limit: int) -> list[VoteRecord]:
        def read(_: Tx) -> list[VoteRecord]:
            votes = [self._tables.votes[key] for key in self._tables.blind]
            return sorted(votes, key=lambda vote: vote.at, reverse=True)[:limit]

        return await self._connection.send(read, writes=False)

    async def verdicts_of(self, reviewer: str, *, after: tuple[int, str] | None, limit: int) -> list[VoteRecord]:
        def read(_: Tx) -> list[VoteRecord]:
            votes = [vote for vote in self._tables.votes.values() if vote.reviewer == reviewer]
            votes = [vote for vote in votes if after is None or (vote.at, vote.job_id) < after]
            return sorted(votes, key=lambda vote: (vote.at, vote.job_id), reverse=True)[:limit]

        return await self._connection.send(read, writes=False)

    async def decisions(self, job_ids: Sequence[str]) -> list[DecisionRecord]:
        def read(_: Tx) -> list[DecisionRecord]:
            rows = [(key, row) for key, row in self._tables.decisions.items() if key[0] in job_ids]
            return [
                DecisionRecord(job_id=key[0], round=key[1], decision=decision, at=at)
                for key, (decision, at) in sorted(rows, key=lambda item: item[0])
            ]

        return await self._connection.send(read, writes=False)

    async def add_bulk(self, bulk: Bulk) -> None:
        def add(tx: Tx) -> None:
            newer = self._tables.bulks.items()
            self._tables.bulks = {name: row for name, row in newer if row[1] >= tx.now - BULK_LIFETIME_US}
            self._tables.bulks[bulk.id] = (bulk, tx.now)

        await self._connection.send(add, writes=True)

    async def bulk(self, bulk_id: str) -> Bulk | None:
        row = await self._connection.send(lambda _: self._tables.bulks.get(bulk_id), writes=False)
        return None if row is None else row[0]

    async def advance_bulk(self, bulk: Bulk) -> Bulk:
        def advance(_: Tx) -> Bulk:
            if bulk.id not in self._tables.bulks:
                return bulk
            stored, created_at = self._tables.bulks[bulk.id]
            self._tables.bulks[bulk.id] = (advanced(stored, bulk), created_at)
            return self._tables.bulks[bulk.id][0]

        return await self._connection.send(advance, writes=True)


class MemoryReviewQueues:
    """In-memory implementation of `reviews.ReviewQueues`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def all(self) -> list[ReviewQueue]:
        def read(_: Tx) -> list[ReviewQueue]:
            return [queue for _, queue in sorted(self._tables.review_queues.items())]

        return await self._connection.send(read, writes=False)

    async def get(self, name: str) -> ReviewQueue | None:
        return await self._connection.send(lambda _: self._tables.review_queues.get(name), writes=False)

    async def of_member(self, email: str) -> list[str]:
        return [queue.name for queue in await self.all() if email in queue.members]

    async def put(self, queue: ReviewQueue) -> None:
        actor = current_actor()

        def put(tx: Tx) -> None:
            old = self._tables.review_queues.get(queue.name)
            if old is None and len(self._tables.review_queues) >= MAX_QUEUES:
                raise Conflict(f"There may be at most {MAX_QUEUES} review queues; remove some of them.")
            self._tables.reported_until.setdefault(queue.name, tx.now)
            self._tables.review_queues[queue.name] = queue
            record(self._tables, tx, actor, change_of("review_queue", queue.name, old, queue))
            bump(self._tables, tx, "people")

        await self._connection.send(put, writes=True)

    async def drop(self, name: str) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            old = self._tables.review_queues.pop(name, None)
            self._tables.reported_until.pop(name, None)
            if old is not None:
                record(self._tables, tx, actor, change_of("review_queue", name, old, None))
                bump(self._tables, tx, "people")
            return old is not None

        return await self._connection.send(drop, writes=True)

    async def reasons(self) -> list[str]:
        return await self._connection.send(lambda _: [*self._tables.review_reasons], writes=False)

    async def put_reasons(self, reasons: Sequence[str]) -> None:
        actor = current_actor()

        def put(tx: Tx) -> None:
            before, after = {"reasons": self._tables.review_reasons}, {"reasons": [*reasons]}
            self._tables.review_reasons = [*reasons]
            change = AuditChange(action="review_reasons_changed", subject="review_reasons", before=before, after=after)
            record(self._tables, tx, actor, change)

        await self._connection.send(put, writes=True)

    async def news(self, *, lag_seconds: float) -> list[QueueNews]:
        def read(tx: Tx) -> list[QueueNews]:
            until = tx.now - round(lag_seconds * SECOND_US)
            queues = [queue for _, queue in sorted(self._tables.review_queues.items())]
            return [self._news_of(queue, until) for queue in queues if self._is_due(queue, until)]

        return await self._connection.send(read, writes=False)

    def _is_due(self, queue: ReviewQueue, now: int) -> bool:
        has_receiver = bool(queue.emails) or queue.sealed is not None
        return has_receiver and now >= self._tables.reported_until[queue.name] + round(queue.digest_seconds * SECOND_US)

    def _news_of(self, queue: ReviewQueue, now: int) -> QueueNews:
        since, age = self._tables.reported_until[queue.name], round((queue.ageing_seconds or 0) * SECOND_US)
        is_ageing = queue.ageing_seconds is not None
        return QueueNews(
            queue=queue,
            since=since,
            until=now,
            new=self._items(queue.name, "held_at", since, now),
            ageing=self._items(queue.name, "held_at", since - age, now - age) if is_ageing else (),
            escalated=self._items(queue.name, "escalated_at", since, now),
        )

    def _items(self, queue: str, time: str, since: int, until: int) -> tuple[NewsItem, ...]:
        held = [job for job in self._tables.unfinished.values() if job.status == "human" and job.release_at is None]
        held = [job for job in held if (job.review_queue or "") == queue and since < (getattr(job, time) or 0) <= until]
        items = [NewsItem(job_id=job.id, target=job.target, at=getattr(job, time)) for job in held]
        return tuple(sorted(items, key=lambda item: item.at)[: MAX_NAMED + 1])

    async def add_notices(self, news: QueueNews, notices: Sequence[Notice]) -> bool:
        def add(tx: Tx) -> bool:
            if self._tables.reported_until.get(news.queue.name) != news.since:
                return False
            self._tables.reported_until[news.queue.name] = news.until
            self._tables.notices |= {notice.id: (notice, tx.now, None) for notice in notices}
            return True

        return await self._connection.send(add, writes=True)

    async def claim_notices(self, *, lease: str, limit: int, lease_seconds: float) -> list[Notice]:
        def claim(tx: Tx) -> list[Notice]:
            rows = sorted(self._tables.notices.values(), key=lambda row: row[1])
            due = [notice for notice, due_at, _ in rows if due_at <= tx.now][:limit]
            claimed = [msgspec.structs.replace(notice, attempt=notice.attempt + 1) for notice in due]
            until = tx.now + round(lease_seconds * SECOND_US)
            self._tables.notices |= {notice.id: (notice, until, lease) for notice in claimed}
            return claimed

        return await self._connection.send(claim, writes=True)

    async def settle_notice(self, notice_id: str, lease: str, outcome: NoticeOutcome) -> None:
        def settle(tx: Tx) -> None:
            row: Any = self._tables.notices.get(notice_id)
            if row is None or row[2] != lease:
                return
            if outcome.after_seconds is None:
                del self._tables.notices[notice_id]
            else:
                due_at = tx.now + round(outcome.after_seconds * SECOND_US)
                self._tables.notices[notice_id] = (row[0], due_at, None)

        await self._connection.send(settle, writes=True)
