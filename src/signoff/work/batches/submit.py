"""Submission of the lines of a batch: each becomes one job, on the path that all requests take."""

import contextlib

import msgspec
import structlog

from signoff.batches import NewLine
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.batch import BATCH_PRIORITY, Batch, BatchTotals
from signoff.core.batch_lines import BatchLine, Line
from signoff.core.batch_results import metadata_of
from signoff.core.job import Job
from signoff.errors import BacklogFull, BadRequest, BlobMissing, SignoffError
from signoff.work.admit import admit
from signoff.work.batches.callers import caller_of_batch
from signoff.work.batches.read import checked_request, lost_contents, read_lines
from signoff.work.inference.caching import lookup_answer
from signoff.work.inference.settle import job_error
from signoff.work.services import Services

DOOR = "batch"
# Lines that are stored in one transaction.
GROUP_LINES = 50
GROUP_BYTES = 4 * 1024 * 1024
# Lines of one batch that wait for a model at a time. More would not be answered earlier, and would fill the backlog
# of the owner.
QUEUED_LINES = 2000
log = structlog.get_logger()


async def submit_lines(services: Services, batch: Batch) -> Batch:
    """Store jobs for lines of a leased batch, until there are enough that wait; return the batch.

    Once all lines are stored, the batch has an outcome; one whose contents have become empty before has failed. While
    the contents cannot be found, `errors` says so, and the rest is tried again until the batch expires or is cancelled.
    Raises Stale if the lease was lost or the batch was cancelled, Unauthorized, and Overloaded.
    """
    caller = await caller_of_batch(services, batch)
    free = QUEUED_LINES - (await services.store.batches.unended(batch.id, at_most=QUEUED_LINES)).queued
    if free <= 0:
        return batch
    with contextlib.ExitStack() as slots:
        group = _Group(services, caller, batch, slots)
        try:
            if not await _submit_up_to(services, group, free):
                return await group.store()
        except BlobMissing as error:
            return await _note_loss(services, await group.store(), error)
        batch = await group.store()
    if batch.next_line == 1 and batch.api == "openai":
        totals = BatchTotals(total=batch.total or 0, failed=batch.total or 0)
        changes = {"errors": (lost_contents(batch),), "totals": totals}
        return await services.store.batches.finish(batch, "failed", changes=changes)
    return await services.store.batches.change(
        batch.id, batch.lease or "", "in_progress", changes={"outcome": "completed", "errors": ()}
    )


async def _note_loss(services: Services, batch: Batch, error: BlobMissing) -> Batch:
    """Add to the batch that its contents are missing, once: they may come back with the place where they are stored."""
    if batch.errors:
        return batch
    log.warning("batch_input_missing", batch_id=batch.id, error=error.message)
    changes = {"errors": (lost_contents(batch),)}
    return await services.store.batches.change(batch.id, batch.lease or "", "in_progress", changes=changes)


async def _submit_up_to(services: Services, group: "_Group", free: int) -> bool:
    """Add lines to `group`, and store full groups; return False if the rest must wait.

    Raises BlobMissing if the contents of the input file are lost.
    """
    async with contextlib.aclosing(read_lines(services, group.batch, from_place=True)) as lines:
        async for line in lines:
            try:
                await group.add(line)
            except BacklogFull:
                return False
            free -= 1
            if free <= 0:
                return False
            if group.is_full:
                await group.store()
    return True


class _Group:
    """Lines that are stored together."""

    def __init__(self, services: Services, caller: Caller, batch: Batch, slots: contextlib.ExitStack) -> None:
        self.batch = batch
        self._slots = slots
        self._services = services
        self._caller = caller
        self._lines = list[NewLine]()
        self._size_bytes = 0
        self._end: Line | None = None

    @property
    def is_full(self) -> bool:
        """True if the lines should be stored now."""
        return len(self._lines) >= GROUP_LINES or self._size_bytes >= GROUP_BYTES

    async def add(self, line: Line) -> None:
        """Admit the request of a line. Raises BacklogFull if the owner has too many jobs, and retryable errors."""
        request = checked_request(line)
        new = await _new_line(self._services, self._caller, self.batch, line.number, request)
        if not new.is_ended:
            size_bytes = len(new.job.body) + len(new.job.metadata)
            self._slots.enter_context(await self._services.runtime.backlogs.reserve(self.batch.user_id, size_bytes))
        self._lines.append(new)
        self._size_bytes += len(line.content or b"")
        self._end = line

    async def store(self) -> Batch:
        """Store the lines, and wake workers; return the batch. Raises Stale."""
        if self._end is None:
            return self.batch
        lines, end = self._lines, self._end
        self._lines, self._size_bytes, self._end = [], 0, None
        with self._slots.pop_all():
            self.batch = await self._services.store.batches.add_lines(
                self.batch, lines, actor=self._caller.actor, next_line=end.number + 1, next_byte=end.end
            )
        for line in lines:
            if not line.is_ended:
                self._services.adapters.broker.notify(line.job.id, line.job.priority)
        return self.batch


async def _new_line(services: Services, caller: Caller, batch: Batch, number: int, line: BatchLine) -> NewLine:
    ask = Ask(
        door=DOOR,
        caller=caller,
        path=batch.endpoint,
        body=bytes(line.body),
        requires_members=True,
        priority=BATCH_PRIORITY,
        metadata=metadata_of(line.custom_id),
    )
    try:
        ask = msgspec.structs.replace(ask, target=_model_of(line))
        job = await admit(services, ask)
        hit = await lookup_answer(services, ask, job)
    except SignoffError as error:
        if error.retryable or error.status >= 500:
            raise
        return NewLine(_refused_job(services, batch, ask, number, error), is_ended=True)
    except (ValueError, RecursionError) as error:  # a value that no door could read must not stop the other lines
        refusal = BadRequest(f"The request cannot be read: {error}.")
        return NewLine(_refused_job(services, batch, ask, number, refusal), is_ended=True)
    job = job if hit is None else hit
    # The results of lines are read from the files of the batch, and not from Redis.
    placed = msgspec.structs.replace(job, batch_id=batch.id, batch_line=number, deliver=())
    return NewLine(placed, is_ended=hit is not None)


class _ModelMember(msgspec.Struct):
    model: str | None = None


def _model_of(line: BatchLine) -> str | None:
    return msgspec.json.decode(line.body, type=_ModelMember).model


def _refused_job(services: Services, batch: Batch, ask: Ask, number: int, error: SignoffError) -> Job:
    """Return the job of a request that cannot be made; it has failed."""
    return Job(
        id=services.ids.new_id(),
        status="fail",
        door=DOOR,
        lane=ask.lane,
        user_id=ask.caller.user_id,
        token_id=ask.caller.token_id,
        target=(ask.target or "").replace("\0", "\ufffd"),
        model="",
        path=ask.path,
        body=ask.body,
        error=job_error(error),
        metadata=ask.metadata,
        priority=BATCH_PRIORITY,
        batch_id=batch.id,
        batch_line=number,
    )
