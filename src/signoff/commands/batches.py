"""`signoff batch`: send the requests of a file as a batch, and write the results beside it."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, err, out, run, stop
from signoff.core.access import Caller
from signoff.core.api_paths import CHAT
from signoff.core.batch import BATCH_INPUT, Batch
from signoff.core.choices import choice_of
from signoff.errors import NotFound, TooLarge
from signoff.settings import load
from signoff.work.batches.files import BlobWriter, UploadFields, find_file, read_file, store_upload
from signoff.work.batches.manage import ENDPOINTS, check_open_batches, create_batch, find_batch, new_batch_id, totals_of
from signoff.work.services import Services

POLL_SECONDS = 0.5
CHUNK_BYTES = 1024 * 1024

batch_commands = CommandGroup(panel="Jobs")


class _State(msgspec.Struct, frozen=True):
    """Contents of the file that remembers a batch until its results are written."""

    batch_id: str
    sha256: str
    """Hash of the input file."""


@batch_commands.register(
    "batch",
    "signoff batch requests.jsonl",
    "signoff batch texts.jsonl --endpoint /v1/embeddings --user ann@example.com",
)
def batch(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Requests in the form of OpenAI's Batch API.")],
    endpoint: Annotated[str, typer.Option(help="Path of all requests.")] = CHAT,
    user: Annotated[str | None, typer.Option(help="Owner of the batch; the operator without it.")] = None,
) -> None:
    """Send the requests of a file as a batch, wait for its end, and write the results beside the file.

    A server or a worker must run. Interrupted, the batch goes on; the same command waits for it again.
    """
    path = choice_of(endpoint, ENDPOINTS)
    if path is None:
        stop(f"--endpoint must be one of {', '.join(ENDPOINTS)} (got {endpoint!r}).")
    if not file.is_file():
        stop(f"FILE {file} is not a file; give one that has a request on each line.")
    ended = run(load(), lambda services: _run(services, file, path, user))
    if ended.status == "failed":
        for fault in ended.errors:
            place = f"{file}" if fault.line is None else f"{file}:{fault.line}"
            err.print(f"{place}: {fault.message} ({fault.code})")
        stop(f"The batch {ended.id} failed; correct its file, and run the command again.")
    if ended.status != "completed":
        stop(f"The batch {ended.id} is {ended.status}; send the requests without an answer again, if you need them.")


async def _run(services: Services, file: Path, endpoint: str, email: str | None) -> Batch:
    """Create the batch of a file, or find the one that was created before; return it at its end."""
    caller, state_path = await _caller(services, email), file.with_name(f"{file.name}.batch")
    digest = await asyncio.to_thread(_digest, file)
    batch = await _resumed(services, caller, state_path, digest)
    if batch is None or batch.endpoint != endpoint:
        await check_open_batches(services, caller)
        batch_id = new_batch_id(services, "batch")
        _write_state(state_path, _State(batch_id, digest))  # first, so that a crash leaves no batch that nobody knows
        batch = await _create(services, caller, file, batch_id, endpoint)
        err.print(f"Created the batch {batch.id}.")
    else:
        err.print(f"Waiting for the batch {batch.id}, which was created before.")
    ended = await _wait(services, caller, batch)
    for file_id, kind in ((ended.output_file_id, "output"), (ended.error_file_id, "errors")):
        path = file.with_name(f"{file.stem}.{kind}.jsonl")
        if file_id is None:
            if ended.status != "failed":  # then an earlier run's results stay
                path.unlink(missing_ok=True)
        else:
            await _download(services, caller, file_id, path)
            out.print(str(path))
    state_path.unlink(missing_ok=True)
    totals = await totals_of(services, ended)
    err.print(f"{ended.status}: {totals.completed} answered, {totals.unanswered} not, of {totals.total}.")
    return ended


async def _caller(services: Services, email: str | None) -> Caller:
    if email is None:
        return OPERATOR
    caller = await services.caches.callers.by_email(email)
    if caller is None:
        raise NotFound(f"There is no active user {email!r}; create one with: signoff user create {email}")
    return caller


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


async def _resumed(services: Services, caller: Caller, path: Path, digest: str) -> Batch | None:
    """Return the batch that an earlier call has created of the same contents; None if there is none."""
    try:
        state = msgspec.json.decode(await asyncio.to_thread(path.read_bytes), type=_State)
        return await find_batch(services, caller, state.batch_id) if state.sha256 == digest else None
    except (FileNotFoundError, msgspec.DecodeError, NotFound):
        return None


def _write_state(path: Path, state: _State) -> None:
    """Write the file as a whole, so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(path)


async def _create(services: Services, caller: Caller, file: Path, batch_id: str, endpoint: str) -> Batch:
    limit = services.rules.max_file_bytes

    async def fill(writer: BlobWriter) -> UploadFields:
        with file.open("rb") as content:
            while chunk := await asyncio.to_thread(content.read, CHUNK_BYTES):
                await writer.write(chunk)
                if writer.size_bytes > limit:
                    raise TooLarge(f"FILE must not be larger than {limit} bytes (setting `max_file_bytes`); split it.")
        return UploadFields(filename=file.name, purpose=BATCH_INPUT)

    stored = await store_upload(services, caller, fill)
    new = Batch(
        id=batch_id,
        user_id=caller.user_id,
        api="openai",
        caller=caller,
        endpoint=endpoint,
        input_file_id=stored.id,
    )
    return await create_batch(services, new)


async def _wait(services: Services, caller: Caller, batch: Batch) -> Batch:
    """Return the batch at its end, and show its progress until then."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(batch.status, total=None)
        while not batch.has_ended:
            batch = await find_batch(services, caller, batch.id)
            totals = await totals_of(services, batch)
            number = totals.completed + totals.unanswered
            progress.update(task, description=batch.status, total=batch.total, completed=number)
            if not batch.has_ended:
                await asyncio.sleep(POLL_SECONDS)
    return batch


async def _download(services: Services, caller: Caller, file_id: str, path: Path) -> None:
    """Write a file; it appears under its name when it is complete."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as content:
        async for piece in await read_file(services, await find_file(services, caller, file_id)):
            await asyncio.to_thread(content.write, piece)
        content.flush()
        await asyncio.to_thread(os.fsync, content.fileno())
    temporary.replace(path)
