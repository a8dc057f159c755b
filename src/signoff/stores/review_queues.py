"""Review queues, their members and their digests, and reasons for rejections, in SQL."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.core.audit import AuditChange, change_of
from signoff.core.reviews.notices import MAX_NAMED, NewsItem, Notice, NoticeOutcome, QueueNews
from signoff.core.reviews.queues import MAX_QUEUES, ReviewQueue
from signoff.core.times import SECOND_US
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.stores.audit import delete_one, record
from signoff.stores.database import Database
from signoff.stores.reviews_schema import review_notices, review_queue_members, review_queues, review_reasons
from signoff.stores.schema import WAITS_FOR_REVIEW, jobs, review_queue_name
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock


class SqlReviewQueues:
    """Review queues in a SQL database; see `reviews.ReviewQueues`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[ReviewQueue]:
        """See `reviews.ReviewQueues`."""
        query = sa.select(review_queues.c.queue).order_by(review_queues.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def get(self, name: str) -> ReviewQueue | None:
        """See `reviews.ReviewQueues`."""
        query = sa.select(review_queues.c.queue).where(review_queues.c.name == name)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one_or_none())

    async def of_member(self, email: str) -> list[str]:
        """See `reviews.ReviewQueues`."""
        query = sa.select(review_queue_members.c.queue).where(review_queue_members.c.member == email)
        query = query.order_by(review_queue_members.c.queue)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def put(self, queue: ReviewQueue) -> None:
        """See `reviews.ReviewQueues`."""
        actor = current_actor()
        is_queue = review_queues.c.name == queue.name

        def put(tx: Tx) -> None:
            lock(tx, "people")
            old = tx.conn.execute(sa.select(review_queues.c.queue).where(is_queue)).scalar_one_or_none()
            if old is None:
                _check_number(tx)
                tx.conn.execute(sa.insert(review_queues).values(name=queue.name, queue=queue, reported_until=tx.now))
            else:
                tx.conn.execute(sa.update(review_queues).where(is_queue).values(queue=queue))
            tx.conn.execute(sa.delete(review_queue_members).where(review_queue_members.c.queue == queue.name))
            members = [{"member": member, "queue": queue.name} for member in queue.members]
            if members:
                tx.conn.execute(sa.insert(review_queue_members), members)
            record(tx, actor, change_of("review_queue", queue.name, old, queue))
            bump(tx, "people")

        await self._database.write(put)

    async def drop(self, name: str) -> bool:
        """See `reviews.ReviewQueues`."""
        actor = current_actor()
        delete = sa.delete(review_queues).where(review_queues.c.name == name).returning(review_queues.c.queue)

        def drop(tx: Tx) -> bool:
            old = delete_one(tx, actor, "people", "review_queue", name, delete)
            tx.conn.execute(sa.delete(review_queue_members).where(review_queue_members.c.queue == name))
            return old is not None

        return await self._database.write(drop)

    async def reasons(self) -> list[str]:
        """See `reviews.ReviewQueues`."""
        return await self._database.read(lambda conn, _: _reasons(conn))

    async def put_reasons(self, reasons: Sequence[str]) -> None:
        """See `reviews.ReviewQueues`."""
        actor = current_actor()

        def put(tx: Tx) -> None:
            lock(tx, "people")
            before = {"reasons": _reasons(tx.conn)}
            tx.conn.execute(sa.delete(review_reasons))
            rows = [{"position": position, "reason": reason} for position, reason in enumerate(reasons)]
            if rows:
                tx.conn.execute(sa.insert(review_reasons), rows)
            after = {"reasons": [*reasons]}
            change = AuditChange(action="review_reasons_changed", subject="review_reasons", before=before, after=after)
            record(tx, actor, change)

        await self._database.write(put)

    async def news(self, *, lag_seconds: float) -> list[QueueNews]:
        """See `reviews.ReviewQueues`."""
        lag = round(lag_seconds * SECOND_US)
        return await self._database.read(lambda conn, now: _read_news(conn, now() - lag))

    async def add_notices(self, news: QueueNews, notices: Sequence[Notice]) -> bool:
        """See `reviews.ReviewQueues`."""
        update = (
            sa.update(review_queues)
            .where(review_queues.c.name == news.queue.name, review_queues.c.reported_until == news.since)
            .values(reported_until=news.until)
        )

        def add(tx: Tx) -> bool:
            if tx.conn.execute(update).rowcount == 0:
                return False
            rows = [msgspec.structs.asdict(notice) | {"due_at": tx.now, "lease": None} for notice in notices]
            if rows:
                tx.conn.execute(sa.insert(review_notices), rows)
            return True

        return await self._database.write(add)

    async def claim_notices(self, *, lease: str, limit: int, lease_seconds: float) -> list[Notice]:
        """See `reviews.ReviewQueues`."""

        def claim(tx: Tx) -> list[Notice]:
            due = sa.select(review_notices.c.id).where(review_notices.c.due_at <= tx.now)
            due = due.order_by(review_notices.c.due_at).limit(limit).with_for_update(skip_locked=True)
            ids = tx.conn.execute(due).scalars().all()
            if not ids:
                return []
            until = tx.now + round(lease_seconds * SECOND_US)
            update = sa.update(review_notices).where(review_notices.c.id.in_(ids))
            update = update.values(due_at=until, lease=lease, attempt=review_notices.c.attempt + 1)
            return [Notice(**row) for row in tx.conn.execute(update.returning(*_NOTICE)).mappings()]

        return await self._database.write(claim)

    async def settle_notice(self, notice_id: str, lease: str, outcome: NoticeOutcome) -> None:
        """See `reviews.ReviewQueues`."""
        is_leased = (review_notices.c.id == notice_id, review_notices.c.lease == lease)

        def settle(tx: Tx) -> None:
            if outcome.after_seconds is None:
                tx.conn.execute(sa.delete(review_notices).where(*is_leased))
                return
            due_at = tx.now + round(outcome.after_seconds * SECOND_US)
            tx.conn.execute(sa.update(review_notices).where(*is_leased).values(due_at=due_at, lease=None))

        await self._database.write(settle)


_NOTICE = tuple(review_notices.c[name] for name in Notice.__struct_fields__)


def _reasons(conn: Connection) -> list[str]:
    query = sa.select(review_reasons.c.reason).order_by(review_reasons.c.position)
    return list(conn.execute(query).scalars())


def _check_number(tx: Tx) -> None:
    number = tx.conn.execute(sa.select(sa.func.count()).select_from(review_queues)).scalar_one()
    if number >= MAX_QUEUES:
        raise Conflict(f"There may be at most {MAX_QUEUES} review queues; remove some of them.")


def _read_news(conn: Connection, until: int) -> list[QueueNews]:
    """Return the news of queues with a receiver whose last digest is long enough ago. At most MAX_QUEUES are read."""
    due = list[QueueNews]()
    for row in conn.execute(sa.select(review_queues)):
        queue: ReviewQueue = row.queue
        has_receiver = queue.emails or queue.sealed is not None
        if not has_receiver or until < row.reported_until + round(queue.digest_seconds * SECOND_US):
            continue
        due.append(_news_of(conn, queue, row.reported_until, until))
    return due


def _news_of(conn: Connection, queue: ReviewQueue, since: int, until: int) -> QueueNews:
    ageing = ()
    if queue.ageing_seconds is not None:
        age = round(queue.ageing_seconds * SECOND_US)
        ageing = _items(conn, queue.name, jobs.c.held_at, since - age, until - age)
    return QueueNews(
        queue=queue,
        since=since,
        until=until,
        new=_items(conn, queue.name, jobs.c.held_at, since, until),
        ageing=ageing,
        escalated=_items(conn, queue.name, jobs.c.escalated_at, since, until),
    )


def _items(conn: Connection, queue: str, time: sa.Column[Any], since: int, until: int) -> tuple[NewsItem, ...]:
    """Return the first answers of a queue that still wait, by a time after `since` and up to `until`."""
    query = sa.select(jobs.c.id, jobs.c.target, time.label("at")).where(
        WAITS_FOR_REVIEW, review_queue_name == queue, time > since, time <= until
    )
    rows = conn.execute(query.order_by(time).limit(MAX_NAMED + 1)).all()
    return tuple(NewsItem(job_id=row.id, target=row.target, at=row.at) for row in rows)
