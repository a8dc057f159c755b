"""Interfaces of the store for files and batches."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from signoff.core.batch import Batch, BatchFilter, BatchStatus, BatchTotals, FileFilter, StoredFile
from signoff.core.filters import Page
from signoff.core.job import Job, JobError


class Files(Protocol):
    """Files of users. Their contents are blobs, which exist as long as a row does.

    A file exists for its owner from the end of its upload until it is deleted or expires. Its row stays until the blob
    is deleted, which waits for the end of the batches that read it.
    """

    async def add(self, file: StoredFile) -> None:
        """Record that an upload begins. The `created_at` of `file` is ignored."""
        ...

    async def complete(self, file: StoredFile, *, lifetime_seconds: float | None) -> StoredFile | None:
        """Record the end of the upload of `file`, with its name, purpose and size; return it.

        It expires `lifetime_seconds` after its creation. Return None if it was deleted meanwhile.
        """
        ...

    async def get(self, file_id: str) -> StoredFile | None:
        """Return the file if it exists for its owner, else None."""
        ...

    async def page(self, filters: FileFilter) -> Page[StoredFile]:
        """Return a page of files. The file of the cursor may have been deleted."""
        ...

    async def delete(self, file_id: str) -> bool:
        """Delete the file for its owner. Return False if it does not exist."""
        ...

    async def stored_bytes(self, user_id: int) -> int:
        """Return the bytes of all files of a user whose blobs exist, deleted ones included."""
        ...

    async def garbage(self, limit: int, *, skip: Collection[str] = ()) -> list[StoredFile]:
        """Return up to `limit` files whose blobs may be deleted, without those whose ids are in `skip`.

        They were deleted, have expired, or their upload began more than a day ago; and no batch that has not ended
        reads them.
        """
        ...

    async def purge(self, file_ids: Sequence[str]) -> None:
        """Delete the rows of files whose blobs are gone."""
        ...

    async def erase(self, user_id: int) -> int:
        """Delete all files and batches of a user, also of those in progress; return the number of rows of files left.

        The rows of files stay until their blobs are gone.
        """
        ...


class LineCounts(msgspec.Struct, frozen=True):
    """Lines of a batch that have not ended, as far as they were counted, and whether they are late."""

    queued: int
    """Number of lines that wait for a model, or for which one is asked."""
    held: int
    """Number of lines that wait for a review."""
    is_overdue: bool
    """True if the completion window of the batch has ended."""


class NewLine(msgspec.Struct, frozen=True):
    """The job of a line that is not stored yet."""

    job: Job
    """The job, with its `batch_id` and `batch_line`."""
    is_ended: bool = False
    """True if it has ended already: with an answer from the cache, or because the request was refused."""


class Batches(Protocol):
    """Batches and the jobs of their lines. A method that names a lease changes nothing once that lease is lost."""

    async def insert(self, batch: Batch, *, window_seconds: float) -> Batch:
        """Insert a batch that is due at once, and return it, with the times that the store has set.

        If the user made a batch with the same `idempotency_key` within the last 24 hours, return that one.
        """
        ...

    async def by_key(self, user_id: int, idempotency_key: str) -> Batch | None:
        """Return the batch that `insert` would return for this key of a user; None if the key is free."""
        ...

    async def get(self, batch_id: str) -> Batch | None:
        """Return the batch, or None if there is none with this id."""
        ...

    async def page(self, filters: BatchFilter) -> Page[Batch]:
        """Return a page of batches."""
        ...

    async def cancel(self, batch_id: str) -> Batch:
        """Begin to cancel a batch that is validated or in progress, and return it; a cancelled one stays as it is.

        Raises Stale if it is in another state, and JobNotFound if there is none.
        """
        ...

    async def delete(self, batch_id: str) -> bool:
        """Delete a batch that has ended, with its files. Return False if there is none that has."""
        ...

    async def claim(self, *, lease: str, limit: int, lease_seconds: float) -> list[Batch]:
        """Lease up to `limit` due batches to the caller, those that are due longest first, and return them."""
        ...

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """Extend leases, given as batch id → token; return the ids of the batches that still have that lease."""
        ...

    async def release(self, batch_id: str, lease: str, *, after_seconds: float) -> None:
        """End the lease; the batch is due again in `after_seconds`. Do nothing if the lease was lost."""
        ...

    async def change(
        self, batch_id: str, lease: str, status: BatchStatus, *, changes: Mapping[str, Any], now: Sequence[str] = ()
    ) -> Batch:
        """Set columns of a batch, and those in `now` to the present time; return the batch.

        Raises Stale if it does not have this lease and this status.
        """
        ...

    async def add_lines(
        self, batch: Batch, lines: Sequence[NewLine], *, actor: str, next_line: int, next_byte: int
    ) -> Batch:
        """Insert the jobs of lines from `batch.next_line` on, and set the place of the next one; return the batch.

        Raises Stale if the batch does not have the lease and the place of `batch` any more, or is not in progress.
        """
        ...

    async def cancel_lines(self, batch: Batch, error: JobError, *, actor: str, limit: int) -> int:
        """Cancel up to `limit` jobs of a batch that have not ended, with `error`; return how many.

        Raises Stale if the batch does not have the lease of `batch` any more.
        """
        ...

    async def finish(
        self,
        batch: Batch,
        status: BatchStatus,
        *,
        changes: Mapping[str, Any],
        output: StoredFile | None = None,
        errors: StoredFile | None = None,
    ) -> Batch:
        """End a batch in `status`, with its output files, and create the delivery about its end; return the batch.

        The input file of a message batch, which nobody can read or delete, is deleted.
        Raises Stale if the batch does not have the lease and the status of `batch` any more.
        """
        ...

    async def totals(self, batch_id: str) -> BatchTotals:
        """Return the present numbers of ended lines, read from an index; `total` and the tokens are 0."""
        ...

    async def open_count(self, user_id: int, *, at_most: int) -> int:
        """Return the number of batches of a user that have not ended; counting stops at `at_most`."""
        ...

    async def unended(self, batch_id: str, *, at_most: int) -> LineCounts:
        """Return the numbers of lines that have not ended; counting of each ends at `at_most`.

        Raises Stale if the batch was deleted.
        """
        ...

    async def lines(self, batch_id: str, *, after_line: int, limit: int, max_bytes: int) -> list[Job]:
        """Return the jobs of up to `limit` lines after `after_line`, in order.

        The list ends with the job by which it reaches `max_bytes`.
        """
        ...

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """Delete up to `limit` batches that ended longer ago than that, with their output; return how many.

        The input file of a message batch goes, too. Batches with a delivery that is due stay.
        """
        ...
