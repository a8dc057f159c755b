"""Check of the input file of a batch, before any of its requests is made."""

import contextlib

from signoff.core.batch import BATCH_INPUT, Batch, BatchError, StoredFile
from signoff.core.batch_lines import LineChecker
from signoff.errors import BlobMissing, ModelNotFound, NotFound, Unauthorized
from signoff.work.batches.callers import caller_of_batch
from signoff.work.batches.files import find_file
from signoff.work.batches.read import read_lines
from signoff.work.inference.resolve import resolve_target
from signoff.work.services import Services


async def check_batch(services: Services, batch: Batch) -> Batch:
    """Read the whole input file of a leased batch, and return the batch as in progress, or as failed with the faults.

    Raises Stale if the lease was lost or the batch was cancelled.
    """
    checker = LineChecker(batch.endpoint, services.rules.max_body_bytes)
    error = await _file_error(services, batch)
    if error is None:
        try:
            async with contextlib.aclosing(read_lines(services, batch)) as lines:
                async for line in lines:
                    checker.check(line)
                    if checker.is_full:
                        break
            checker.finish()
        except BlobMissing:
            error = _cannot_find(batch)
    if error is None and (error := await _model_error(services, batch, checker)) is not None:
        checker.errors = sorted([error, *checker.errors], key=lambda each: each.line or 0)
        error = None
    errors = checker.errors if error is None else [error]
    if errors:
        return await services.store.batches.finish(batch, "failed", changes={"errors": tuple(errors)})
    changes = {"status": "in_progress", "total": checker.count, "model": checker.model}
    return await services.store.batches.change(
        batch.id, batch.lease or "", "validating", changes=changes, now=["in_progress_at"]
    )


async def _file_error(services: Services, batch: Batch) -> BatchError | None:
    """Return the reason for which the file cannot be the input of a batch; None if it can."""
    try:
        file = await _input_file(services, batch)
    except (NotFound, Unauthorized):
        return _cannot_find(batch)
    if file.purpose != BATCH_INPUT:
        message = f"The file {file.id} must have the purpose 'batch' (got '{file.purpose}')."
        return BatchError(code="invalid_request", message=message, param="input_file_id")
    return None


async def _input_file(services: Services, batch: Batch) -> StoredFile:
    return await find_file(services, await caller_of_batch(services, batch), batch.input_file_id)


def _cannot_find(batch: Batch) -> BatchError:
    message = f"Cannot find file {batch.input_file_id}, or you do not have access to it."
    return BatchError(code="invalid_request", message=message, param="input_file_id")


async def _model_error(services: Services, batch: Batch, checker: LineChecker) -> BatchError | None:
    """Return the error of a model that the caller cannot use; None if there is none."""
    if checker.model is None:
        return None
    try:
        await resolve_target(services, await caller_of_batch(services, batch), checker.model)
    except ModelNotFound:
        message = f"The provided model '{checker.model[:200]}' is not supported: no model of this server has the name."
        return BatchError(code="model_not_found", message=message, line=checker.model_line, param="body.model")
    return None
