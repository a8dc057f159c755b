"""In-memory receipts, made by the rules of `core.reviews.receipt`, and figures that are computed from them."""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from signoff.core.audit import receipts_archived, signing_key_changed
from signoff.core.reviews.figures import DecisionDetails, FigureQuery, FigureRow, FigureTotals, details_of, figures_of
from signoff.core.reviews.receipt import (
    EVENTS_OF_OPENING,
    FIRST_HASH,
    ArchiveReceipt,
    Head,
    KeyReceipt,
    Receipt,
    ReceiptDraft,
    ReceiptVote,
    ReviewEvent,
    VerdictReceipt,
    encode_key,
    hash_of,
    key_id,
    review_times,
    signed_head,
    signed_line,
    verdict_receipt,
)
from signoff.core.times import DAY_US, HOUR_US
from signoff.errors import Conflict
from signoff.infra.actor import current_actor
from signoff.records import ReceiptFilter, StoredReceipt

if TYPE_CHECKING:
    from simulation.tables import Connection, Tables, Tx


class Chain:
    """The stored receipts, and those that were archived."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Receipt, bytes]] = {}
        self.salts: dict[tuple[str, int], bytes] = {}
        self.decided: list[VerdictReceipt] = []
        self.details: dict[int, DecisionDetails] = {}
        self.last: Receipt | None = None
        self.archived_until = 0
        self.key_count = 0
        self._key: Ed25519PrivateKey | None = None

    @property
    def key(self) -> Ed25519PrivateKey:
        """Return the key that signs."""
        assert self._key is not None
        return self._key

    def begin(self, now: int) -> None:
        """Create the first key if there is none."""
        if self._key is None:
            self.change_key(now, is_lost=False)

    def change_key(self, now: int, *, is_lost: bool) -> KeyReceipt:
        """Create a key, the same ones in each run, and announce it."""
        self.key_count += 1
        key = Ed25519PrivateKey.from_private_bytes(sha256(f"key {self.key_count}".encode()).digest())
        public_key = key.public_key().public_bytes_raw()
        if self._key is None or is_lost:
            self._key = key
        receipt = KeyReceipt(**self.place(now), new_key=key_id(public_key), public_key=encode_key(public_key))
        self.append(receipt)
        self._key = key
        return receipt

    def place(self, now: int) -> dict[str, Any]:
        """Return the place of the next receipt."""
        before = FIRST_HASH if self.last is None else hash_of(self.last)
        key = key_id(self.key.public_key().public_bytes_raw())
        return {"seq": self.count + 1, "at": now, "before": before, "key": key}

    @property
    def count(self) -> int:
        """Number of the last receipt."""
        return 0 if self.last is None else self.last.seq

    def append(self, receipt: Receipt) -> None:
        """Sign and store the next receipt."""
        self.stored[receipt.seq] = (receipt, signed_line(receipt, self.key.sign))
        self.last = receipt

    def decide(
        self,
        draft: ReceiptDraft,
        events: list[ReviewEvent],
        votes: tuple[ReceiptVote, ...],
        now: int,
        *,
        is_caught: bool | None = None,
    ) -> None:
        """Append the receipt of a decision."""
        self.begin(now)
        salt = sha256(f"salt {self.count}".encode()).digest()
        times = review_times(events, draft.after.updated_at)
        receipt = verdict_receipt(draft, self.place(now), salt=salt, times=times, votes=votes)
        self.append(receipt)
        self.decided.append(receipt)
        self.details[receipt.seq] = details_of(draft.before, is_caught=is_caught)
        self.salts[receipt.job_id, receipt.round] = salt


def append_receipts(tables: Tables, tx: Tx) -> None:
    """Append the receipts of a transaction that is committed."""
    for draft in tx.drafts:
        rows = [event for event, _ in tables.events[draft.before.id] if event.seq <= draft.after.seq]
        events = [
            ReviewEvent(event.verb, event.actor, event.at, event.data.get("review_lease_until"))
            for event in rows
            if event.verb in EVENTS_OF_OPENING | {"hold"}
        ]
        decided = tables.decisions.get((draft.before.id, draft.before.round))
        votes = () if decided is None else (ReceiptVote(reviewer=decided[0].reviewer, verdict=decided[0].verdict),)
        caught = tx.caught.get((draft.before.id, draft.before.round))
        tables.receipts.decide(draft, events, votes, tx.now, is_caught=caught)


class MemoryReceipts:
    """In-memory implementation of `records.Receipts`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def page(self, filters: ReceiptFilter) -> list[StoredReceipt]:
        def read(_: Tx) -> list[StoredReceipt]:
            chain = self._tables.receipts
            return [
                StoredReceipt(seq=receipt.seq, line=line, salt=chain.salts.get(_round_of(receipt)))
                for receipt, line in chain.stored.values()
                if _matches(receipt, filters)
            ][: filters.limit]

        return await self._connection.send(read, writes=False)

    async def public_key(self) -> bytes:
        def read(tx: Tx) -> bytes:
            self._tables.receipts.begin(tx.now)
            return self._tables.receipts.key.public_key().public_bytes_raw()

        return await self._connection.send(read, writes=True)

    async def head(self) -> Head:
        def read(tx: Tx) -> Head:
            chain = self._tables.receipts
            chain.begin(tx.now)
            place = chain.place(tx.now)
            head = Head(count=chain.count, hash=place["before"], at=tx.now, key=place["key"])
            return signed_head(head, chain.key.sign)

        return await self._connection.send(read, writes=True)

    async def rotate(self, *, is_lost: bool = False) -> KeyReceipt:
        actor = current_actor()

        def rotate(tx: Tx) -> KeyReceipt:
            from simulation.tables import record

            self._tables.receipts.begin(tx.now)
            old = self._tables.receipts.place(tx.now)["key"]
            receipt = self._tables.receipts.change_key(tx.now, is_lost=is_lost)
            record(self._tables, tx, actor, signing_key_changed(old, receipt.new_key, is_lost=is_lost))
            return receipt

        return await self._connection.send(rotate, writes=True)

    async def archive(self, until_seq: int) -> None:
        actor = current_actor()

        def archive(tx: Tx) -> None:
            from simulation.tables import record

            chain = self._tables.receipts
            if until_seq <= chain.archived_until:
                return
            if until_seq not in chain.stored:
                raise Conflict(f"There is no receipt {until_seq}.")
            last = hash_of(chain.stored[until_seq][0])
            chain.append(ArchiveReceipt(**chain.place(tx.now), archived_until=until_seq, archived_hash=last))
            chain.archived_until = until_seq
            record(self._tables, tx, actor, receipts_archived(until_seq))

        await self._connection.send(archive, writes=True)

    async def delete_archived(self, limit: int) -> int:
        def delete(_: Tx) -> int:
            chain = self._tables.receipts
            old = [seq for seq in chain.stored if seq <= chain.archived_until][:limit]
            for seq in old:
                del chain.stored[seq]
            return len(old)

        return await self._connection.send(delete, writes=True)

    async def figures(self, query: FigureQuery) -> tuple[list[FigureRow], FigureTotals]:
        def read(_: Tx) -> tuple[list[FigureRow], FigureTotals]:
            return computed_figures(self._tables.receipts.decided, query, self._tables.receipts.details)

        return await self._connection.send(read, writes=False)


def computed_figures(
    receipts: list[VerdictReceipt], query: FigureQuery, details: dict[int, DecisionDetails] | None = None
) -> tuple[list[FigureRow], FigureTotals]:
    """Return the figures that follow from the receipts themselves."""
    groups, total = defaultdict[tuple[Any, ...], dict[str, int]](lambda: defaultdict(int)), defaultdict[str, int](int)
    for receipt in receipts:
        hour = receipt.at // HOUR_US * HOUR_US
        of_receipt = (details or {}).get(receipt.seq, DecisionDetails())
        of_prompt = {"prompt": of_receipt.prompt, "prompt_version": of_receipt.prompt_version}
        for reviewer, totals in figures_of(receipt, of_receipt).items():
            fields = {
                "policy": receipt.policy,
                "target": receipt.target,
                "reviewer": reviewer,
                "prompt": of_receipt.prompt,
            }
            wanted = all(getattr(query, name) in {None, value} for name, value in fields.items())
            if not wanted or hour < query.since // HOUR_US * HOUR_US:
                continue
            if query.until is not None and hour >= -(-query.until // HOUR_US) * HOUR_US:
                continue
            fields |= of_prompt | {"hour": hour, "day": hour // DAY_US * DAY_US}
            for name, amount in msgspec.structs.asdict(totals).items():
                groups[tuple(fields[name] for name in query.by)][name] += amount
                total[name] += amount
    ordered = sorted(groups.items(), key=lambda item: [(value is not None, value) for value in item[0]])
    rows = [
        FigureRow(dimensions=dict(zip(query.by, values, strict=True)), totals=FigureTotals(**sums))
        for values, sums in ordered[query.offset : query.offset + query.limit]
    ]
    return rows if query.by else [], FigureTotals(**total)


def _round_of(receipt: Receipt) -> tuple[str, int]:
    return (receipt.job_id, receipt.round) if isinstance(receipt, VerdictReceipt) else ("", 0)


def _matches(receipt: Receipt, filters: ReceiptFilter) -> bool:
    return (
        receipt.seq > filters.after_seq
        and (filters.until_seq is None or receipt.seq <= filters.until_seq)
        and filters.job_id in {None, _round_of(receipt)[0]}
        and (filters.since is None or receipt.at >= filters.since)
        and (filters.until is None or receipt.at < filters.until)
    )
