"""Receipts of decisions, in SQL.

The end of each transaction appends the receipts of its decisions to the chain, and holds the lock of the chain until
its commit.
"""

import secrets
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.audit import receipts_archived, signing_key_changed
from signoff.core.reviews.figures import FigureQuery, FigureRow, FigureTotals, details_of
from signoff.core.reviews.receipt import (
    EVENTS_OF_OPENING,
    OPENING,
    SALT_BYTES,
    ArchiveReceipt,
    Head,
    KeyReceipt,
    ReceiptDraft,
    ReceiptVote,
    ReviewEvent,
    review_times,
    verdict_receipt,
)
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.records import ReceiptFilter, StoredReceipt
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.receipt_chain import NEWEST_KEY, ReceiptChain, open_key
from signoff.stores.receipts_schema import receipt_salts, receipts
from signoff.stores.review_figures import add_figures, read_figures
from signoff.stores.schema import events, votes
from signoff.stores.transaction import Tx


class SqlReceipts:
    """Receipts in a SQL database; see `records.Receipts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, filters: ReceiptFilter) -> list[StoredReceipt]:
        """See `records.Receipts`."""
        query = _page_statement(filters)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return [StoredReceipt(seq=row.seq, line=row.line, salt=row.salt) for row in rows]

    async def public_key(self) -> bytes:
        """See `records.Receipts`."""
        row = await self._database.read(lambda conn, _: conn.execute(NEWEST_KEY).one_or_none())
        if row is not None:
            return row.public_key
        return await self._database.write_alone(lambda tx: ReceiptChain(tx).public_key)

    async def head(self) -> Head:
        """See `records.Receipts`."""
        return await self._database.write_alone(lambda tx: ReceiptChain(tx).head())

    async def rotate(self, *, is_lost: bool = False) -> KeyReceipt:
        """See `records.Receipts`."""
        actor = current_actor()

        def rotate(tx: Tx) -> KeyReceipt:
            check_signer(tx, is_lost=is_lost)
            chain = ReceiptChain(tx, is_lost=is_lost)
            old = chain.key_id
            receipt = chain.change_key()
            record(tx, actor, signing_key_changed(old, receipt.new_key, is_lost=is_lost))
            return receipt

        return await self._database.write_alone(rotate)

    async def archive(self, until_seq: int) -> None:
        """See `records.Receipts`."""
        actor = current_actor()

        def archive(tx: Tx) -> None:
            check_signer(tx)
            declared = tx.conn.execute(sa.select(sa.func.max(receipts.c.archived_until))).scalar() or 0
            if until_seq <= declared:
                return
            last = tx.conn.execute(sa.select(receipts.c.hash).where(receipts.c.seq == until_seq)).scalar_one_or_none()
            if last is None:
                raise Conflict(f"There is no receipt {until_seq}.")
            chain = ReceiptChain(tx)
            receipt = ArchiveReceipt(**chain.place(), archived_until=until_seq, archived_hash=last)
            chain.append(receipt, archived_until=until_seq)
            record(tx, actor, receipts_archived(until_seq))

        await self._database.write_alone(archive)

    async def delete_archived(self, limit: int) -> int:
        """See `records.Receipts`."""
        archived = sa.select(sa.func.max(receipts.c.archived_until)).scalar_subquery()
        first = sa.select(receipts.c.seq).where(receipts.c.seq <= archived).order_by(receipts.c.seq).limit(limit)
        delete = sa.delete(receipts).where(receipts.c.seq.in_(first))
        return await self._database.write(lambda tx: tx.conn.execute(delete).rowcount)

    async def figures(self, query: FigureQuery) -> tuple[list[FigureRow], FigureTotals]:
        """See `records.Receipts`."""
        return await read_figures(self._database, query)


def check_signer(tx: Tx, *, is_lost: bool = False) -> None:
    """Check that this process can sign, before anything is written. Raises Unreadable."""
    row = tx.conn.execute(NEWEST_KEY).one_or_none()
    if row is not None and not is_lost:
        open_key(tx, row)


def append_receipts(tx: Tx, drafts: list[ReceiptDraft]) -> None:
    """Append the receipts of decisions that the transaction has made, and add them to the figures."""
    events_of, votes_of = _review_events(tx, drafts), _votes(tx, drafts)
    chain = ReceiptChain(tx)
    for draft in drafts:
        before, salt = draft.before, secrets.token_bytes(SALT_BYTES)
        happened = [event for seq, event in events_of[before.id] if seq <= draft.after.seq]
        receipt = verdict_receipt(
            draft,
            chain.place(),
            salt=salt,
            times=review_times(happened, draft.after.updated_at),
            votes=tuple(votes_of[before.id, before.round]),
        )
        chain.append(receipt, job_id=before.id, round=before.round)
        tx.add(receipt_salts, {"job_id": before.id, "round": before.round, "salt": salt})
        add_figures(tx, receipt, details_of(before, is_caught=tx.caught.get((before.id, before.round))))


def _page_statement(filters: ReceiptFilter) -> sa.Select[Any]:
    of_receipt = (receipt_salts.c.job_id == receipts.c.job_id) & (receipt_salts.c.round == receipts.c.round)
    columns: list[ColumnElement[Any]] = [receipts.c.seq, receipts.c.line, receipt_salts.c.salt]
    query = sa.select(*columns).select_from(receipts.outerjoin(receipt_salts, of_receipt))
    query = query.where(receipts.c.seq > filters.after_seq)
    if filters.until_seq is not None:
        query = query.where(receipts.c.seq <= filters.until_seq)
    if filters.job_id is not None:
        query = query.where(receipts.c.job_id == filters.job_id)
    if filters.since is not None:
        query = query.where(receipts.c.at >= filters.since)
    if filters.until is not None:
        query = query.where(receipts.c.at < filters.until)
    return query.order_by(receipts.c.seq).limit(filters.limit)


def _review_events(tx: Tx, drafts: Sequence[ReceiptDraft]) -> dict[str, list[tuple[int, ReviewEvent]]]:
    """Return the events of the reviews of some jobs, with their numbers, in order. Contents are not read."""
    lease = sa.case((events.c.verb.in_(sorted(OPENING)), events.c.data), else_=sa.null())
    query = (
        sa.select(events.c.job_id, events.c.seq, events.c.verb, events.c.actor, events.c.at, lease.label("data"))
        .where(
            events.c.job_id.in_(sorted({draft.before.id for draft in drafts})),
            events.c.verb.in_(sorted(EVENTS_OF_OPENING | {"hold"})),
        )
        .order_by(events.c.job_id, events.c.seq)
    )
    by_job = defaultdict[str, list[tuple[int, ReviewEvent]]](list)
    for row in tx.conn.execute(query):
        until = None if row.data is None else row.data.get("review_lease_until")
        by_job[row.job_id].append((row.seq, ReviewEvent(row.verb, row.actor, row.at, until)))
    return by_job


def _votes(tx: Tx, drafts: Sequence[ReceiptDraft]) -> dict[tuple[str, int], list[ReceiptVote]]:
    """Return the votes of some jobs by job and round, ordered by reviewer."""
    ids = sorted({draft.before.id for draft in drafts})
    query = sa.select(*votes.c).where(votes.c.job_id.in_(ids)).order_by(votes.c.reviewer)
    by_round = defaultdict[tuple[str, int], list[ReceiptVote]](list)
    for row in tx.conn.execute(query):
        by_round[row.job_id, row.round].append(ReceiptVote(reviewer=row.reviewer, verdict=row.verdict))
    return by_round
