"""Batches whose input is lost in the blob store, or is longer than the present limits: all of them end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest
import sqlalchemy as sa

from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.stores.batches_schema import batches
from signoff.work.batches import submit
from signoff.work.reviews.desk import VerdictRequest, decide
from support.batches import a_line, created, ended, new_user, results
from support.live_server import Live, chat, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server on which two lines of a batch wait for a review, and the others for their turn."""
    async with live(tmp_path_factory.mktemp("server"), max_waiting_jobs=2) as server:
        await server.model("careful", review="always")
        yield server


@pytest.fixture
async def ai(server: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield a client with a token of a new user."""
    async with new_user(server) as ai:
        yield ai


async def lose(server: Live, batch_id: str, contents: bytes | None = None) -> None:
    """Delete the contents of the input file of a batch, or replace them."""
    batch = await server.services.store.batches.get(batch_id)
    assert batch is not None
    blobs, name = server.services.adapters.blobs, f"files/{batch.input_file_id}"
    await blobs.delete(name)
    if contents is not None:
        async with blobs.write(name) as writer:
            await writer.write(contents)


async def in_progress(server: Live, batch_id: str) -> None:
    """Wait until a batch was checked."""

    async def is_checked() -> bool | None:
        batch = await server.services.store.batches.get(batch_id)
        return (batch is not None and batch.status == "in_progress") or None

    await until(is_checked)


async def half_submitted(ai: openai.AsyncOpenAI, server: Live) -> tuple[Any, list[str]]:
    """Return a batch of five lines, and the ids of the two jobs that are held."""
    batch = await created(ai, *(a_line(str(number), model="careful") for number in range(5)))

    async def two_held() -> list[str] | None:
        held = await server.services.store.jobs.list(JobFilter(status="human", limit=1000))
        ids = [job.id for job in held if job.batch_id == batch.id]
        return ids if len(ids) == 2 else None

    return batch, await until(two_held)


async def shown_as_missing(server: Live, batch_id: str) -> None:
    """Wait until a batch, which goes on, says that its contents are missing."""

    async def has_error() -> bool | None:
        batch = await server.services.store.batches.get(batch_id)
        assert batch is not None
        assert batch.status == "in_progress"
        return bool(batch.errors) or None

    await until(has_error)


async def test_a_batch_whose_contents_were_cut_off_completes_with_the_lines_that_are_left(
    ai: openai.AsyncOpenAI, server: Live
) -> None:
    batch, held = await half_submitted(ai, server)
    await lose(server, batch.id, b"")
    for job_id in held:
        await decide(server.services, REVIEWER, job_id, VerdictRequest(verdict="approve"))
    done = await ended(ai, batch)
    assert (done.status, done.request_counts.model_dump()) == ("completed", {"total": 5, "completed": 2, "failed": 3})  # type: ignore[union-attr]
    assert [line["custom_id"] for line in await results(ai, done.output_file_id)] == ["0", "1"]
    assert done.errors is not None
    assert done.errors.data is not None
    [error] = done.errors.data
    assert (error.code, error.param) == ("invalid_request", "input_file_id")
    assert "upload the requests" in (error.message or "")


@pytest.mark.parametrize("contents", [None, b"x" * 5000], ids=["missing", "others"])
async def test_a_batch_goes_on_once_its_contents_are_restored(
    contents: bytes | None, ai: openai.AsyncOpenAI, server: Live
) -> None:
    batch, held = await half_submitted(ai, server)
    stored = await server.services.store.batches.get(batch.id)
    pieces = server.services.adapters.blobs.read(f"files/{stored.input_file_id}")  # type: ignore[union-attr]
    whole = b"".join([piece async for piece in pieces])
    await lose(server, batch.id, contents)
    for job_id in held:
        await decide(server.services, REVIEWER, job_id, VerdictRequest(verdict="approve"))
    await shown_as_missing(server, batch.id)
    await lose(server, batch.id, whole)
    await server.model("careful", review="never")
    done = await ended(ai, batch)
    await server.model("careful", review="always")
    assert (done.status, done.request_counts.model_dump()) == ("completed", {"total": 5, "completed": 5, "failed": 0})  # type: ignore[union-attr]
    assert done.errors is None


async def test_a_batch_whose_contents_are_empty_before_any_request_is_made_fails(
    ai: openai.AsyncOpenAI, server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(submit, "QUEUED_LINES", 0)
        batch = await created(ai, a_line("a"), a_line("b"))
        await in_progress(server, batch.id)
        await lose(server, batch.id, b"")
    done = await ended(ai, batch)
    assert (done.status, done.request_counts.model_dump()) == ("failed", {"total": 2, "completed": 0, "failed": 2})  # type: ignore[union-attr]
    assert done.failed_at is not None
    assert done.errors is not None
    assert [error.param for error in done.errors.data or []] == ["input_file_id"]
    assert (done.output_file_id, done.error_file_id) == (None, None)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_whose_contents_are_lost_expires_and_can_be_cancelled(
    end: str, ai: openai.AsyncOpenAI, server: Live
) -> None:
    batch, _ = await half_submitted(ai, server)
    await lose(server, batch.id)
    await shown_as_missing(server, batch.id)
    if end == "cancelled":
        await ai.batches.cancel(batch.id)
    else:
        expired = sa.update(batches).where(batches.c.id == batch.id).values(expires_at=0)
        await execute(server.services.store, expired)  # type: ignore[arg-type]
    done = await ended(ai, batch)
    assert (done.status, done.request_counts.model_dump()) == (end, {"total": 5, "completed": 0, "failed": 5})  # type: ignore[union-attr]
    errors = await results(ai, done.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (name, f"batch_{end}") for name in ("0", "1")
    ]
    assert done.errors is not None


async def test_a_batch_of_messages_whose_contents_are_lost_ends(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await server.token(email="messages@example.com")
    requests: Any = [{"custom_id": "a", "params": chat("hello") | {"max_tokens": 5}}]
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=token, max_retries=0) as ai:
        with monkeypatch.context() as patched:
            patched.setattr(submit, "QUEUED_LINES", 0)
            batch = await ai.messages.batches.create(requests=requests)
            await lose(server, batch.id)
        await shown_as_missing(server, batch.id)
        await ai.messages.batches.cancel(batch.id)

        async def counts() -> dict[str, int] | None:
            present = await ai.messages.batches.retrieve(batch.id)
            return present.request_counts.model_dump() if present.processing_status == "ended" else None

        assert await until(counts) == {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 1, "expired": 0}


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_line_that_was_accepted_under_a_higher_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    async with live(tmp_path) as server, new_user(server) as ai:
        with monkeypatch.context() as patched:
            patched.setattr(submit, "QUEUED_LINES", 0)
            batch = await created(ai, a_line("long", "x" * 5000), a_line("short"))
            await in_progress(server, batch.id)
            msgspec.structs.force_setattr(server.services.rules, "max_body_bytes", 2000)
            if is_cancelled:
                await ai.batches.cancel(batch.id)
                await ended(ai, batch)
        done = await ended(ai, batch)
        file_id = done.error_file_id if is_cancelled else done.output_file_id
        assert [line["custom_id"] for line in await results(ai, file_id)] == ["long", "short"]
