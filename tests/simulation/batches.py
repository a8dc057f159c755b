"""In-memory files and batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from signoff.batches import LineCounts, NewLine
from signoff.core.batch import LISTED_PURPOSES, Batch, BatchFilter, BatchStatus, BatchTotals, FileFilter, StoredFile
from signoff.core.filters import Page, page_length
from signoff.core.job import Job, JobError
from signoff.core.times import SECOND_US
from signoff.errors import JobNotFound, Stale
from signoff.store import TransitionRequest
from signoff.stores.batches import _create_delivery, _own_inputs
from signoff.stores.files import UPLOAD_US
from signoff.stores.jobs import KEY_LIFETIME_US, with_times
from simulation.jobs import MemoryJobs
from simulation.tables import Connection, Tables, Tx


class MemoryFiles:
    """In-memory implementation of `batches.Files`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def add(self, file: StoredFile) -> None:
        await self._connection.send(lambda tx: put_file(self._tables, tx, file, None), writes=True)

    async def complete(self, file: StoredFile, *, lifetime_seconds: float | None) -> StoredFile | None:
        def complete(_: Tx) -> StoredFile | None:
            row = self._tables.files.get(file.id)
            if row is None or row.size_bytes is not None or file.id in self._tables.deleted_files:
                return None
            expires_at = None if lifetime_seconds is None else row.created_at + round(lifetime_seconds * SECOND_US)
            completed = msgspec.structs.replace(file, created_at=row.created_at, expires_at=expires_at)
            self._tables.files[file.id] = completed
            return completed

        return await self._connection.send(complete, writes=True)

    async def get(self, file_id: str) -> StoredFile | None:
        return await self._connection.send(lambda tx: self._find(tx, file_id), writes=False)

    async def page(self, filters: FileFilter) -> Page[StoredFile]:
        def read(tx: Tx) -> Page[StoredFile]:
            purposes = LISTED_PURPOSES if filters.purpose is None else (filters.purpose,)
            own = [file for file in self._tables.files.values() if file.user_id == filters.user_id]
            if filters.after_id is not None:
                own = [file for file in own if (file.id < filters.after_id) == filters.newest_first]
                own = [file for file in own if file.id != filters.after_id]
            own.sort(key=lambda file: file.id, reverse=filters.newest_first)
            listed = [file for file in own if file.purpose in purposes and self._find(tx, file.id)]
            return Page(listed[: filters.limit], may_continue=len(listed) > filters.limit)

        return await self._connection.send(read, writes=False)

    async def delete(self, file_id: str) -> bool:
        def delete(tx: Tx) -> bool:
            if self._find(tx, file_id) is None:
                return False
            self._tables.deleted_files[file_id] = tx.now
            return True

        return await self._connection.send(delete, writes=True)

    async def stored_bytes(self, user_id: int) -> int:
        def read(_: Tx) -> int:
            own = [file for file in self._tables.files.values() if file.user_id == user_id]
            return sum(file.size_bytes or 0 for file in own)

        return await self._connection.send(read, writes=False)

    async def garbage(self, limit: int, *, skip: Collection[str] = ()) -> list[StoredFile]:
        def read(tx: Tx) -> list[StoredFile]:
            batches = self._tables.batches.values()
            inputs = {batch.input_file_id for batch in batches if not batch.has_ended}
            files = [file for file in self._tables.files.values() if file.id not in {*inputs, *skip}]
            return [file for file in files if self._is_garbage(tx, file)][:limit]

        return await self._connection.send(read, writes=False)

    async def purge(self, file_ids: Sequence[str]) -> None:
        def purge(_: Tx) -> None:
            for file_id in file_ids:
                self._tables.files.pop(file_id, None)
                self._tables.deleted_files.pop(file_id, None)

        await self._connection.send(purge, writes=True)

    async def erase(self, user_id: int) -> int:
        def erase(tx: Tx) -> int:
            tables = self._tables
            erased = {batch.id for batch in tables.batches.values() if batch.user_id == user_id}
            tables.batches = {name: batch for name, batch in tables.batches.items() if name not in erased}
            tables.deliveries = {name: row for name, row in tables.deliveries.items() if row.job_id not in erased}
            own = [file.id for file in tables.files.values() if file.user_id == user_id]
            for file_id in own:
                tables.deleted_files.setdefault(file_id, tx.now)
            return len(own)

        return await self._connection.send(erase, writes=True)

    def _find(self, tx: Tx, file_id: str) -> StoredFile | None:
        file = self._tables.files.get(file_id)
        if file is None or file.size_bytes is None or file_id in self._tables.deleted_files:
            return None
        return None if file.expires_at is not None and file.expires_at <= tx.now else file

    def _is_garbage(self, tx: Tx, file: StoredFile) -> bool:
        has_expired = file.expires_at is not None and file.expires_at <= tx.now
        is_abandoned = file.size_bytes is None and file.created_at < tx.now - UPLOAD_US
        return file.id in self._tables.deleted_files or has_expired or is_abandoned


def put_file(tables: Tables, tx: Tx, file: StoredFile, lifetime_seconds: float | None) -> None:
    """Store a file, which is created now."""
    expires_at = None if lifetime_seconds is None else tx.now + round(lifetime_seconds * SECOND_US)
    tables.files[file.id] = msgspec.structs.replace(file, created_at=tx.now, expires_at=expires_at)


class MemoryBatches:
    """In-memory implementation of `batches.Batches`."""

    def __init__(self, tables: Tables, connection: Connection, jobs: MemoryJobs) -> None:
        self._tables = tables
        self._connection = connection
        self._jobs = jobs

    async def insert(self, batch: Batch, *, window_seconds: float) -> Batch:
        def insert(tx: Tx) -> Batch:
            for row in list(self._tables.batches.values()):
                if row.user_id == batch.user_id and row.idempotency_key == batch.idempotency_key is not None:
                    if row.created_at >= tx.now - KEY_LIFETIME_US:
                        return row
                    self._tables.batches[row.id] = msgspec.structs.replace(row, idempotency_key=None)
            times = {"created_at": tx.now, "due_at": tx.now, "expires_at": tx.now + round(window_seconds * SECOND_US)}
            if batch.status == "in_progress":
                times["in_progress_at"] = tx.now
            return self._put(tx, msgspec.structs.replace(batch, **times))

        return await self._connection.send(insert, writes=True)

    async def by_key(self, user_id: int, idempotency_key: str) -> Batch | None:
        def read(tx: Tx) -> Batch | None:
            own = (row for row in self._tables.batches.values() if row.user_id == user_id)
            row = next((row for row in own if row.idempotency_key == idempotency_key), None)
            return None if row is None or row.created_at < tx.now - KEY_LIFETIME_US else row

        return await self._connection.send(read, writes=False)

    async def get(self, batch_id: str) -> Batch | None:
        return await self._connection.send(lambda _: self._tables.batches.get(batch_id), writes=False)

    async def page(self, filters: BatchFilter) -> Page[Batch]:
        def read(_: Tx) -> Page[Batch]:
            own = [row for row in self._tables.batches.values() if row.api == filters.api]
            own = [row for row in own if filters.user_id in {None, row.user_id}]
            own = [row for row in own if filters.after_id is None or row.id < filters.after_id]
            own = [row for row in own if filters.before_id is None or row.id > filters.before_id]
            own.sort(key=lambda row: row.id, reverse=filters.before_id is None)
            page = own[: filters.limit]
            newest_first = page if filters.before_id is None else page[::-1]
            return Page(newest_first, may_continue=len(own) > filters.limit)

        return await self._connection.send(read, writes=False)

    async def cancel(self, batch_id: str) -> Batch:
        def cancel(tx: Tx) -> Batch:
            batch = self._tables.batches.get(batch_id)
            if batch is None:
                raise JobNotFound(f"No batch found with id '{batch_id}'.")
            if batch.status in {"cancelling", "cancelled"}:
                return batch
            if batch.status not in {"validating", "in_progress"}:
                raise Stale(f"Cannot cancel a batch with status '{batch.status}'.")
            changes = {"status": "cancelling", "cancelling_at": tx.now, "due_at": tx.now, "outcome": "cancelled"}
            return self._put(tx, msgspec.structs.replace(batch, **changes))

        return await self._connection.send(cancel, writes=True)

    async def delete(self, batch_id: str) -> bool:
        def delete(tx: Tx) -> bool:
            batch = self._tables.batches.get(batch_id)
            if batch is None or not batch.has_ended:
                return False
            self._drop(tx, batch, with_input=True)
            return True

        return await self._connection.send(delete, writes=True)

    async def claim(self, *, lease: str, limit: int, lease_seconds: float) -> list[Batch]:
        def claim(tx: Tx) -> list[Batch]:
            rows = [row for row in self._tables.batches.values() if not row.has_ended and row.due_at <= tx.now]
            free = [row for row in rows if row.lease is None or (row.lease_until or 0) < tx.now]
            until = tx.now + round(lease_seconds * SECOND_US)
            due = sorted(free, key=lambda row: row.due_at)[:limit]
            claimed = [msgspec.structs.replace(row, lease=lease, lease_until=until) for row in due]
            self._tables.batches |= {row.id: row for row in claimed}
            return claimed

        return await self._connection.send(claim, writes=True)

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        def renew(tx: Tx) -> set[str]:
            until = tx.now + round(lease_seconds * SECOND_US)
            held = [row for row in self._tables.batches.values() if leases.get(row.id, "") == row.lease]
            self._tables.batches |= {row.id: msgspec.structs.replace(row, lease_until=until) for row in held}
            return {row.id for row in held}

        return await self._connection.send(renew, writes=True)

    async def release(self, batch_id: str, lease: str, *, after_seconds: float) -> None:
        def release(tx: Tx) -> None:
            batch = self._tables.batches.get(batch_id)
            if batch is not None and batch.lease == lease:
                due_at = tx.now if batch.status == "cancelling" else tx.now + round(after_seconds * SECOND_US)
                changes = {"lease": None, "lease_until": None, "due_at": due_at}
                self._tables.batches[batch_id] = msgspec.structs.replace(batch, **changes)

        await self._connection.send(release, writes=True)

    async def change(
        self, batch_id: str, lease: str, status: BatchStatus, *, changes: Mapping[str, Any], now: Sequence[str] = ()
    ) -> Batch:
        def change(tx: Tx) -> Batch:
            batch = self._held(batch_id, lease, lambda row: row.status == status)
            return self._put(tx, msgspec.structs.replace(batch, **changes, **dict.fromkeys(now, tx.now)))

        return await self._connection.send(change, writes=True)

    async def add_lines(
        self, batch: Batch, lines: Sequence[NewLine], *, actor: str, next_line: int, next_byte: int
    ) -> Batch:
        def add(tx: Tx) -> Batch:
            place = (batch.next_line, "in_progress")
            held = self._held(batch.id, batch.lease, lambda row: (row.next_line, row.status) == place)
            for line in lines:
                verb = "submit" if not line.is_ended else ("hit" if line.job.status == "success" else "refuse")
                self._jobs.add_job(tx, with_times(line.job, tx.now, 0, None), verb, actor)
            return self._put(tx, msgspec.structs.replace(held, next_line=next_line, next_byte=next_byte))

        return await self._connection.send(add, writes=True)

    async def cancel_lines(self, batch: Batch, error: JobError, *, actor: str, limit: int) -> int:
        def cancel(tx: Tx) -> int:
            self._held(batch.id, batch.lease, lambda _: True)
            request = TransitionRequest(verb="cancel", actor=actor, changes={"error": error})
            unended = [job for job in self._tables.unfinished.values() if job.batch_id == batch.id][:limit]
            for job in unended:
                self._jobs.apply(tx, job.id, request)
            return len(unended)

        return await self._connection.send(cancel, writes=True)

    async def finish(
        self,
        batch: Batch,
        status: BatchStatus,
        *,
        changes: Mapping[str, Any],
        output: StoredFile | None = None,
        errors: StoredFile | None = None,
    ) -> Batch:
        def finish(tx: Tx) -> Batch:
            held = self._held(batch.id, batch.lease, lambda row: row.status == batch.status)
            ids = {"output_file_id": output and output.id, "error_file_id": errors and errors.id}
            end = {"status": status, f"{status}_at": tx.now, "lease": None, "lease_until": None}
            ended = msgspec.structs.replace(held, **{**changes, **ids, **end})
            for file in (output, errors):
                if file is not None:
                    put_file(self._tables, tx, file, batch.output_seconds)
            self._delete_files(tx, *_own_inputs(ended))
            _create_delivery(tx, ended)  # type: ignore[arg-type]
            return self._put(tx, ended)

        return await self._connection.send(finish, writes=True)

    async def totals(self, batch_id: str) -> BatchTotals:
        def read(_: Tx) -> BatchTotals:
            ended = [job.status for job in self._tables.ended.values() if job.batch_id == batch_id]
            return BatchTotals(completed=ended.count("success"), failed=ended.count("fail"))

        return await self._connection.send(read, writes=False)

    async def open_count(self, user_id: int, *, at_most: int) -> int:
        def read(_: Tx) -> int:
            own = [each for each in self._tables.batches.values() if each.user_id == user_id and not each.has_ended]
            return min(len(own), at_most)

        return await self._connection.send(read, writes=False)

    async def unended(self, batch_id: str, *, at_most: int) -> LineCounts:
        def read(tx: Tx) -> LineCounts:
            if batch_id not in self._tables.batches:
                raise Stale(f"The batch {batch_id} was deleted.")
            is_overdue = self._tables.batches[batch_id].expires_at <= tx.now
            statuses = [job.status for job in self._tables.unfinished.values() if job.batch_id == batch_id]
            return LineCounts(min(statuses.count("bot"), at_most), min(statuses.count("human"), at_most), is_overdue)

        return await self._connection.send(read, writes=False)

    async def lines(self, batch_id: str, *, after_line: int, limit: int, max_bytes: int) -> list[Job]:
        def read(_: Tx) -> list[Job]:
            own = [job for job in self._tables.jobs.values() if job.batch_id == batch_id]
            after = sorted((job for job in own if (job.batch_line or 0) > after_line), key=lambda job: job.batch_line)
            sizes = (len(job.body) + len(job.metadata) + len(job.response or b"") for job in after[:limit])
            return after[: page_length(sizes, max_bytes)]

        return await self._connection.send(read, writes=False)

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        def purge(tx: Tx) -> int:
            before = tx.now - round(older_than_seconds * SECOND_US)
            undelivered = {delivery.job_id for delivery in self._tables.deliveries.values() if delivery.state == "due"}
            ended = [row for row in self._tables.batches.values() if row.has_ended and row.id not in undelivered]
            old = [row for row in ended if getattr(row, f"{row.status}_at") < before][:limit]
            for batch in old:
                self._drop(tx, batch, with_input=False)
            return len(old)

        return await self._connection.send(purge, writes=True)

    def _held(self, batch_id: str, lease: str | None, condition: Callable[[Batch], bool]) -> Batch:
        batch = self._tables.batches.get(batch_id)
        if batch is None or lease is None or batch.lease != lease or not condition(batch):
            raise Stale(f"The batch {batch_id} has changed.")
        return batch

    def _put(self, tx: Tx, batch: Batch) -> Batch:
        self._tables.batches[batch.id] = batch
        tx.changes.append(("batch", batch.id))
        return batch

    def _drop(self, tx: Tx, batch: Batch, *, with_input: bool) -> None:
        del self._tables.batches[batch.id]
        inputs = [batch.input_file_id] if with_input else _own_inputs(batch)
        self._delete_files(tx, *inputs, batch.output_file_id, batch.error_file_id)
        rows = self._tables.deliveries
        self._tables.deliveries = {name: row for name, row in rows.items() if row.job_id != batch.id}

    def _delete_files(self, tx: Tx, *file_ids: str | None) -> None:
        for file_id in file_ids:
            if file_id in self._tables.files:
                self._tables.deleted_files.setdefault(file_id, tx.now)
