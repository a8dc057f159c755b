"""Contract tests of stores: files, batches, and the jobs of their lines."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from signoff.batches import NewLine
from signoff.budgets import PassRequest
from signoff.core.access import Caller
from signoff.core.batch import (
    BATCH_CANCELLED,
    FILE_SECONDS,
    Batch,
    BatchError,
    BatchFilter,
    BatchTotals,
    FileFilter,
    StoredFile,
)
from signoff.core.delivery import DeliveryOutcome
from signoff.core.filters import JobFilter
from signoff.core.reviews.budget_period import BudgetTerms
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.planted import PlantedItem
from signoff.core.reviews.policy import JobPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.errors import JobNotFound, Stale
from signoff.stores.batches_schema import batches
from support.stores import ANSWER, AStore, a_job, a_step, execute, together

pytestmark = pytest.mark.anyio
CALLER = Caller(user_id=7, token_id=8, role="user", email="ann@example.com")
DAY = 24 * 3600
FUTURE = -3600.0  # the age of what will be created within the next hour
NUMBERS = iter(range(10**6))


def a_file(**more: Any) -> StoredFile:
    plain = {"id": f"file-{next(NUMBERS):06d}", "user_id": 7, "filename": "in.jsonl", "purpose": "batch"}
    return StoredFile(**{**plain, **more})


async def stored_file(store: AStore, *, lifetime_seconds: float | None = None, **more: Any) -> StoredFile:
    file = a_file(**more)
    await store.files.add(file)
    complete = msgspec.structs.replace(file, size_bytes=10)
    stored = await store.files.complete(complete, lifetime_seconds=lifetime_seconds)
    assert stored is not None
    return stored


def a_batch(**more: Any) -> Batch:
    plain = {
        "id": f"batch_{next(NUMBERS):06d}",
        "user_id": 7,
        "api": "openai",
        "caller": CALLER,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-x",
    }
    return Batch(**{**plain, **more})


async def stored_batch(store: AStore, **more: Any) -> Batch:
    return await store.batches.insert(a_batch(**more), window_seconds=DAY)


async def leased_batch(store: AStore, lease: str = "mine", **more: Any) -> Batch:
    """Insert a batch that is in progress, and lease it."""
    batch = await stored_batch(store, status="in_progress", total=3, **more)
    claimed = await store.batches.claim(lease=lease, limit=100, lease_seconds=60)
    return next(each for each in claimed if each.id == batch.id)


def line_of(batch: Batch, number: int, **more: Any) -> NewLine:
    job = a_job(batch_id=batch.id, batch_line=number, user_id=7, priority=1, **more)
    return NewLine(job, is_ended=job.is_terminal)


# Files


async def test_a_file_exists_once_its_upload_has_ended(store: AStore, other: AStore) -> None:
    file = a_file()
    await store.files.add(file)
    assert await other.files.get(file.id) is None
    assert not await other.files.delete(file.id)
    complete = msgspec.structs.replace(file, filename="b.jsonl", purpose="evals", size_bytes=5)
    stored = await store.files.complete(complete, lifetime_seconds=3600)
    assert stored is not None
    assert stored == await other.files.get(file.id)
    assert (stored.filename, stored.purpose, stored.size_bytes) == ("b.jsonl", "evals", 5)
    assert stored.expires_at == stored.created_at + 3600 * 10**6
    # and ends once only
    assert await store.files.complete(complete, lifetime_seconds=None) is None


async def test_a_deleted_or_expired_file_does_not_exist_and_its_blob_is_garbage(store: AStore) -> None:
    present, deleted = await stored_file(store), await stored_file(store)
    expired = await stored_file(store, lifetime_seconds=-1)
    assert await store.files.delete(deleted.id)
    assert not await store.files.delete(deleted.id)
    assert [await store.files.get(each.id) for each in (present, deleted, expired)] == [present, None, None]
    assert await store.files.page(FileFilter(user_id=7)) == [present]
    assert {each.id for each in await store.files.garbage(10)} == {deleted.id, expired.id}
    assert len(await store.files.garbage(1)) == 1
    assert [each.id for each in await store.files.garbage(1, skip={deleted.id})] == [expired.id]
    assert await store.files.garbage(1, skip={deleted.id, expired.id}) == []
    await store.files.purge([deleted.id, expired.id])
    assert await store.files.garbage(10) == []


async def test_the_input_of_a_batch_that_has_not_ended_is_no_garbage(store: AStore) -> None:
    file = await stored_file(store)
    batch = await leased_batch(store, input_file_id=file.id)
    await store.files.delete(file.id)
    assert await store.files.garbage(10) == []
    await store.batches.finish(batch, "failed", changes={})
    assert [each.id for each in await store.files.garbage(10)] == [file.id]


async def test_the_files_of_a_user_count_until_their_blobs_are_gone(store: AStore, other: AStore) -> None:
    files = [await stored_file(store) for _ in range(2)]
    await stored_file(store, user_id=8)
    await store.files.add(a_file())
    size_bytes = files[0].size_bytes or 0
    await store.files.delete(files[0].id)
    assert await other.files.stored_bytes(7) == 2 * size_bytes > 0
    await store.files.purge([files[0].id])
    assert [await store.files.stored_bytes(user) for user in (7, 9)] == [size_bytes, 0]


async def test_an_upload_that_was_deleted_meanwhile_does_not_complete(store: AStore) -> None:
    file = a_file()
    await store.files.add(file)
    assert await store.files.erase(7) == 1
    complete = msgspec.structs.replace(file, size_bytes=5)
    assert await store.files.complete(complete, lifetime_seconds=None) is None
    assert [each.id for each in await store.files.garbage(10)] == [file.id]


async def test_files_are_listed_by_time_and_purpose_in_pages(store: AStore) -> None:
    files = [await stored_file(store) for _ in range(5)]
    evals = await stored_file(store, purpose="evals")
    await stored_file(store, user_id=8)
    await stored_file(store, purpose="message_batch")  # not one of the listed purposes
    newest_first = [evals, *reversed(files)]
    first = await store.files.page(FileFilter(user_id=7, limit=4))
    assert (list(first), first.may_continue) == (newest_first[:4], True)
    rest = await store.files.page(FileFilter(user_id=7, limit=4, after_id=first[-1].id))
    assert (list(rest), rest.may_continue) == (newest_first[4:], False)
    oldest_first = await store.files.page(FileFilter(user_id=7, newest_first=False, limit=2, after_id=files[0].id))
    assert list(oldest_first) == files[1:3]
    assert list(await store.files.page(FileFilter(user_id=7, purpose="evals"))) == [evals]
    assert await store.files.page(FileFilter(user_id=8, after_id=files[0].id)) == []


@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_page_of_files_goes_on_after_a_file_that_was_deleted(store: AStore, newest_first: bool) -> None:
    files = [await stored_file(store) for _ in range(5)]
    in_order = files[::-1] if newest_first else files
    await store.files.delete(files[2].id)
    assert (
        list(await store.files.page(FileFilter(user_id=7, newest_first=newest_first, after_id=files[2].id)))
        == (in_order[3:])
    )
    await store.files.purge([files[2].id])
    assert (
        list(await store.files.page(FileFilter(user_id=7, newest_first=newest_first, after_id=files[2].id)))
        == (in_order[3:])
    )


# Batches


async def test_a_batch_is_stored_as_it_is_with_the_times_of_the_store(store: AStore, other: AStore) -> None:
    errors = (BatchError(code="empty_file", message="m", line=1, param="p"),)
    more = {"metadata": {"a": "b"}, "errors": errors, "webhook": b"x", "webhook_host": "h", "output_seconds": None}
    batch = await stored_batch(store, **more)
    assert await other.batches.get(batch.id) == batch
    assert batch.expires_at - batch.created_at == DAY * 10**6
    assert (batch.metadata, batch.errors, batch.caller) == ({"a": "b"}, errors, CALLER)
    assert await store.batches.get("batch_none") is None


async def test_batches_are_listed_in_pages_in_both_directions(store: AStore) -> None:
    batches = [await stored_batch(store) for _ in range(5)]
    await stored_batch(store, api="anthropic")
    await stored_batch(store, user_id=8)
    newest_first, own = list(reversed(batches)), {"user_id": 7, "api": "openai"}
    page = await store.batches.page(BatchFilter(**own, limit=3))  # type: ignore[arg-type]
    assert (list(page), page.may_continue) == (newest_first[:3], True)
    page = await store.batches.page(BatchFilter(**own, limit=3, after_id=page[-1].id))  # type: ignore[arg-type]
    assert (list(page), page.may_continue) == (newest_first[3:], False)
    page = await store.batches.page(BatchFilter(**own, limit=2, before_id=batches[1].id))  # type: ignore[arg-type]
    assert (list(page), page.may_continue) == ([batches[3], batches[2]], True)


async def test_batches_of_all_users_are_listed_by_api(store: AStore) -> None:
    batches = [await stored_batch(store, user_id=user_id) for user_id in (7, 8, 9)]
    messages = [await stored_batch(store, id=f"msgbatch_{number}", api="anthropic") for number in range(2)]
    every = {"user_id": None, "api": "openai"}
    page = await store.batches.page(BatchFilter(**every, limit=2))  # type: ignore[arg-type]
    assert (list(page), page.may_continue) == ([batches[2], batches[1]], True)
    page = await store.batches.page(BatchFilter(**every, after_id=page[-1].id))  # type: ignore[arg-type]
    assert list(page) == [batches[0]]
    assert list(await store.batches.page(BatchFilter(user_id=None, api="anthropic"))) == messages[::-1]


async def test_equal_idempotency_keys_of_a_user_make_one_batch(store: AStore, other: AStore) -> None:
    new = [a_batch(idempotency_key="k") for _ in range(4)]
    works = [each.batches.insert(one, window_seconds=DAY) for each, one in zip((store, other) * 2, new, strict=True)]
    assert len({batch.id for batch in await together(works)}) == 1
    assert (await stored_batch(store, idempotency_key="k", user_id=8)).user_id == 8
    assert (await stored_batch(store, idempotency_key="l")).id not in {batch.id for batch in new}


async def test_a_key_is_free_again_after_a_day(store: AStore) -> None:
    first = await stored_batch(store, idempotency_key="k")
    await execute(store, sa.update(batches).values(created_at=first.created_at - 25 * 3600 * 10**6))
    second = await stored_batch(store, idempotency_key="k")
    assert second.id != first.id
    freed = await store.batches.get(first.id)
    assert freed is not None
    assert freed.idempotency_key is None
    assert (await stored_batch(store, idempotency_key="k")).id == second.id


async def test_a_batch_is_found_by_its_key_for_a_day(store: AStore, other: AStore) -> None:
    keyed, _ = await stored_batch(store, idempotency_key="k"), await stored_batch(store)
    assert await other.batches.by_key(7, "k") == keyed
    assert [await other.batches.by_key(*each) for each in ((8, "k"), (7, "l"))] == [None, None]
    await execute(store, sa.update(batches).values(created_at=keyed.created_at - 25 * 3600 * 10**6))
    assert await store.batches.by_key(7, "k") is None


async def test_each_due_batch_is_leased_to_one_process(store: AStore, other: AStore) -> None:
    batches = [await stored_batch(store) for _ in range(3)]
    claims = await together(each.batches.claim(lease="l", limit=2, lease_seconds=60) for each in (store, other) * 2)
    assert sorted(batch.id for claimed in claims for batch in claimed) == [batch.id for batch in batches]
    assert await store.batches.claim(lease="m", limit=5, lease_seconds=60) == []
    # which ends by a release, after its seconds
    await store.batches.release(batches[0].id, "l", after_seconds=0)
    await store.batches.release(batches[1].id, "l", after_seconds=600)
    await store.batches.release(batches[2].id, "other", after_seconds=0)
    assert [batch.id for batch in await other.batches.claim(lease="m", limit=5, lease_seconds=60)] == [batches[0].id]


async def test_a_lease_that_is_not_renewed_lapses(store: AStore) -> None:
    first, second = await stored_batch(store), await stored_batch(store)
    await store.batches.claim(lease="l", limit=2, lease_seconds=-1)
    assert await store.batches.renew({first.id: "l", second.id: "wrong"}, 60) == {first.id}
    assert [each.id for each in await store.batches.claim(lease="m", limit=2, lease_seconds=60)] == [second.id]
    assert await store.batches.renew({second.id: "l"}, 60) == set()
    assert await store.batches.renew({}, 60) == set()


async def test_a_change_needs_the_lease_and_the_status(store: AStore) -> None:
    batch = await leased_batch(store)
    changed = await store.batches.change(
        batch.id, "mine", "in_progress", changes={"status": "finalizing", "outcome": "completed"}, now=["finalizing_at"]
    )
    assert (changed.status, changed.outcome) == ("finalizing", "completed")
    assert changed.finalizing_at is not None
    for lease, status in (("other", "finalizing"), ("mine", "in_progress")):
        with pytest.raises(Stale):
            await store.batches.change(batch.id, lease, status, changes={"total": 9})  # type: ignore[arg-type]
    assert await store.batches.get(batch.id) == changed


async def test_the_batches_of_a_user_that_have_not_ended_are_counted(store: AStore) -> None:
    for _ in range(3):
        await stored_batch(store)
    await stored_batch(store, user_id=8)
    assert [await store.batches.open_count(7, at_most=number) for number in (2, 9)] == [2, 3]
    [batch, *_] = await store.batches.claim(lease="mine", limit=1, lease_seconds=60)
    await store.batches.finish(batch, "failed", changes={})
    assert await store.batches.open_count(batch.user_id, at_most=9) == 2


async def test_lines_are_inserted_once_with_the_place_of_the_next_one(store: AStore, other: AStore) -> None:
    batch = await leased_batch(store)
    refused = line_of(batch, 2, status="fail")
    lines = [line_of(batch, 1), refused, line_of(batch, 3, status="success", response=ANSWER)]
    added = await store.batches.add_lines(batch, lines, actor="worker", next_line=4, next_byte=99)
    assert (added.next_line, added.next_byte) == (4, 99)
    # a process that believes to be at the old place, or under an old lease, adds nothing
    again = [line_of(batch, 1)]
    for stale in (batch, msgspec.structs.replace(added, lease="old"), msgspec.structs.replace(added, lease=None)):
        with pytest.raises(Stale):
            await other.batches.add_lines(stale, again, actor="worker", next_line=2, next_byte=9)
    stored = await other.batches.lines(batch.id, after_line=0, limit=10, max_bytes=10**6)
    assert [job.batch_line for job in stored] == [1, 2, 3]
    assert [(await store.jobs.events(job.id))[0].verb for job in stored] == ["submit", "refuse", "hit"]
    assert await store.batches.totals(batch.id) == BatchTotals(completed=1, failed=1)


async def test_the_jobs_of_lines_are_claimed_after_those_of_callers(store: AStore) -> None:
    batch = await leased_batch(store)
    lines = [line_of(batch, number) for number in (1, 2)]
    await store.batches.add_lines(batch, lines, actor="worker", next_line=3, next_byte=9)
    waiting = await store.jobs.insert(a_job(user_id=7), actor="ann")
    claimed = [await store.jobs.claim(actor="w", lease="l", limit=5, lease_seconds=60) for _ in range(2)]
    assert [[job.id for job in jobs] for jobs in claimed] == [[waiting.id], [line.job.id for line in lines]]


async def test_lines_are_read_in_order_in_bounded_pages(store: AStore) -> None:
    batch = await leased_batch(store)
    lines = [line_of(batch, number, body=b'"' + b"x" * 100 + b'"') for number in range(1, 6)]
    await store.batches.add_lines(batch, lines, actor="worker", next_line=6, next_byte=9)
    read = store.batches.lines
    assert [job.batch_line for job in await read(batch.id, after_line=2, limit=2, max_bytes=10**6)] == [3, 4]
    assert [job.batch_line for job in await read(batch.id, after_line=0, limit=5, max_bytes=150)] == [1, 2]
    assert await read(batch.id, after_line=5, limit=5, max_bytes=150) == []


async def test_a_cancelled_batch_takes_no_lines_and_cancels_those_that_have_not_ended(store: AStore) -> None:
    batch = await leased_batch(store)
    lines = [line_of(batch, 1, status="success", response=ANSWER), *(line_of(batch, number) for number in (2, 3, 4))]
    batch = await store.batches.add_lines(batch, lines, actor="worker", next_line=5, next_byte=9)
    held = await store.jobs.claim(actor="w", lease="mine", limit=1, lease_seconds=60)
    await store.jobs.transition(held[0].id, a_step("hold", changes={"response": ANSWER}))
    cancelling = await store.batches.cancel(batch.id)
    assert (cancelling.status, cancelling.outcome) == ("cancelling", "cancelled")
    assert cancelling.cancelling_at is not None
    with pytest.raises(Stale):
        await store.batches.add_lines(batch, [line_of(batch, 5)], actor="worker", next_line=6, next_byte=9)
    # the process that goes on with it gets it at once, whatever the former one said
    await store.batches.release(batch.id, "mine", after_seconds=600)
    [claimed] = await store.batches.claim(lease="next", limit=1, lease_seconds=60)
    assert (await store.batches.unended(batch.id, at_most=10)).queued == 2
    assert (await store.batches.unended(batch.id, at_most=10)).held == 1
    assert (await store.batches.unended(batch.id, at_most=1)).queued == 1
    with pytest.raises(Stale):
        await store.batches.cancel_lines(batch, BATCH_CANCELLED, actor="worker", limit=2)
    counts = [await store.batches.cancel_lines(claimed, BATCH_CANCELLED, actor="worker", limit=2) for _ in range(3)]
    assert counts == [2, 1, 0]
    ended = await store.batches.lines(batch.id, after_line=0, limit=10, max_bytes=10**6)
    assert [job.status for job in ended] == ["success", "fail", "fail", "fail"]
    assert {job.error for job in ended[1:]} == {BATCH_CANCELLED}


async def test_a_cancelled_batch_leaves_the_audits_of_its_lines_to_reviewers(store: AStore) -> None:
    batch = await leased_batch(store)
    lines = [line_of(batch, number, policy=JobPolicy(review="always")) for number in (1, 2)]
    batch = await store.batches.add_lines(batch, lines, actor="batch", next_line=3, next_byte=30)
    [job, _] = await store.jobs.claim(actor="w", lease="w", limit=9, lease_seconds=60)
    terms = BudgetTerms(answers=1000, share=0.05, audit_rate=0.2)
    await store.budgets.take_passes(
        PassRequest(policy="p", group=None, version=1, terms=terms, lease="passes", most=1, seconds=60)
    )
    coin = Coin(value=0.1, look_rate=0.2, audit_rate=0.2, policy="p", period=1, lease="passes")
    changes = {"response": ANSWER, "ruling": Ruling(outcome="hold", coin=coin)}
    held = await store.jobs.transition(job.id, a_step("hold", lease="w", changes=changes))
    await store.budgets.plant(PlantedItem(policy="p", path=held.path, body=b"{}", response=ANSWER))
    planted = await store.budgets.present_planted("p", held, "planted-1", actor="w")
    assert planted is not None
    await store.batches.cancel(batch.id)
    assert await store.batches.cancel_lines(batch, BATCH_CANCELLED, actor="batch", limit=9) == 2
    counts = await store.batches.unended(batch.id, at_most=9)
    assert (counts.queued, counts.held) == (0, 0)
    assert [each.id for each in await store.batches.lines(batch.id, after_line=0, limit=9, max_bytes=10**6)] == [
        line.job.id for line in lines
    ]
    [copy] = [each for each in await store.jobs.list(JobFilter(status="human")) if each.id != planted.id]
    assert (copy.copy_of, copy.batch_id, planted.batch_id) == (held.id, None, None)


async def test_only_a_batch_that_is_validated_or_in_progress_can_be_cancelled(store: AStore) -> None:
    batch = await leased_batch(store)
    cancelling = await store.batches.cancel(batch.id)
    # again it stays as it is, at its end, too
    assert await store.batches.cancel(batch.id) == cancelling
    cancelled = await store.batches.finish(cancelling, "cancelled", changes={})
    assert await store.batches.cancel(batch.id) == cancelled
    completed = await store.batches.finish(await leased_batch(store), "completed", changes={})
    with pytest.raises(Stale, match="Cannot cancel a batch with status 'completed'"):
        await store.batches.cancel(completed.id)
    with pytest.raises(JobNotFound, match="No batch found"):
        await store.batches.cancel("batch_none")


async def test_the_end_of_a_batch_adds_its_files_and_its_delivery_once(store: AStore, other: AStore) -> None:
    batch = await leased_batch(store, webhook=b"sealed", webhook_host="example.com")
    output, errors = a_file(purpose="batch_output", size_bytes=5), a_file(purpose="batch_output", size_bytes=6)
    totals = BatchTotals(total=3, completed=2, failed=1)

    async def finish(each: AStore) -> Batch | None:
        with contextlib.suppress(Stale):
            return await each.batches.finish(
                batch, "completed", changes={"totals": totals}, output=output, errors=errors
            )
        return None

    [ended] = [each for each in await asyncio.gather(finish(store), finish(other)) if each is not None]
    assert (ended.status, ended.totals, ended.lease, ended.has_ended) == ("completed", totals, None, True)
    assert (ended.output_file_id, ended.error_file_id) == (output.id, errors.id)
    assert ended.completed_at is not None
    stored = await store.files.get(output.id)
    assert stored is not None
    assert stored.expires_at == stored.created_at + FILE_SECONDS * 10**6
    [delivery] = await store.deliveries.of_job(batch.id)
    assert (delivery.id, delivery.kind, delivery.host) == (f"msg_{batch.id}", "webhook", "example.com")
    assert await store.batches.claim(lease="l", limit=5, lease_seconds=60) == []


async def test_a_batch_without_a_receiver_has_no_delivery(store: AStore) -> None:
    batch = await leased_batch(store)
    ended = await store.batches.finish(batch, "failed", changes={"errors": (BatchError(code="c", message="m"),)})
    assert [error.code for error in ended.errors] == ["c"]
    assert await store.deliveries.of_job(batch.id) == []


async def test_a_batch_that_has_ended_can_be_deleted_with_its_files(store: AStore) -> None:
    file = await stored_file(store, purpose="message_batch")
    batch = await leased_batch(store, input_file_id=file.id)
    assert not await store.batches.delete(batch.id)
    output = a_file(purpose="message_batch_output", size_bytes=5)
    await store.batches.finish(batch, "completed", changes={}, output=output)
    assert await store.batches.delete(batch.id)
    assert await store.batches.get(batch.id) is None
    assert {each.id for each in await store.files.garbage(10)} == {file.id, output.id}


async def test_jobs_stay_until_their_batch_has_ended_and_old_batches_go_with_their_output(store: AStore) -> None:
    file = await stored_file(store)
    batch = await leased_batch(store, input_file_id=file.id)
    line = line_of(batch, 1, status="success", response=ANSWER)
    batch = await store.batches.add_lines(batch, [line], actor="worker", next_line=2, next_byte=9)
    assert await store.jobs.purge(FUTURE, 10) == 0
    output = a_file(purpose="batch_output", size_bytes=5)
    await store.batches.finish(batch, "completed", changes={}, output=output)
    assert await store.jobs.purge(FUTURE, 10) == 1
    assert await store.batches.purge(3600, 10) == 0
    assert await store.batches.purge(FUTURE, 10) == 1
    assert await store.batches.get(batch.id) is None
    assert [each.id for each in await store.files.garbage(10)] == [output.id]


async def test_the_input_of_a_message_batch_is_deleted_at_its_end(store: AStore) -> None:
    file = await stored_file(store, purpose="message_batch")
    batch = await leased_batch(store, id=f"msgbatch_{next(NUMBERS)}", api="anthropic", input_file_id=file.id)
    assert await store.files.garbage(10) == []
    await store.batches.finish(batch, "completed", changes={})
    assert [each.id for each in await store.files.garbage(10)] == [file.id]


async def test_the_input_of_an_old_message_batch_goes_with_it(store: AStore) -> None:
    file = await stored_file(store, purpose="message_batch")
    # version 0.2.0 left the input of a batch that ended
    await stored_batch(
        store,
        id=f"msgbatch_{next(NUMBERS)}",
        api="anthropic",
        input_file_id=file.id,
        status="completed",
        completed_at=1,
    )
    assert await store.batches.purge(3600, 10) == 1
    assert [each.id for each in await store.files.garbage(10)] == [file.id]


async def test_old_batches_stay_until_their_deliveries_have_ended(store: AStore) -> None:
    silent, batch = await leased_batch(store), await leased_batch(store, webhook=b"sealed", webhook_host="a.example")
    for each in (silent, batch):
        await store.batches.finish(each, "completed", changes={})
    assert await store.batches.purge(FUTURE, 10) == 1
    assert await store.batches.get(batch.id) is not None
    [delivery] = await store.deliveries.claim(
        "webhook", lease="mine", limit=16, limit_per_host=16, busy={}, lease_seconds=60
    )
    assert await store.batches.purge(FUTURE, 10) == 0
    await store.deliveries.settle(delivery.id, "mine", DeliveryOutcome(state="failed"))
    assert await store.batches.purge(FUTURE, 10) == 1
    assert await store.deliveries.of_job(batch.id) == []


async def test_the_erasure_of_a_user_deletes_all_their_batches_and_files(store: AStore) -> None:
    file, other_file = await stored_file(store), await stored_file(store, user_id=8)
    batch = await leased_batch(store, input_file_id=file.id)
    assert await store.files.erase(7) == 1
    assert await store.batches.get(batch.id) is None
    assert await store.files.get(file.id) is None
    with pytest.raises(Stale):
        await store.batches.add_lines(batch, [line_of(batch, 1)], actor="worker", next_line=2, next_byte=9)
    assert [each.id for each in await store.files.garbage(10)] == [file.id]
    await store.files.purge([file.id])
    assert await store.files.erase(7) == 0
    assert await store.files.get(other_file.id) == other_file


async def test_a_batch_that_waits_or_changes_is_announced(store: AStore) -> None:
    changes: list[tuple[str, str]] = []
    store.listen(lambda topic, name: changes.append((topic, name)))
    batch = await leased_batch(store)
    await store.batches.cancel(batch.id)
    assert changes.count(("batch", batch.id)) == 2
