"""Contract tests of `records.Erasures`."""

from __future__ import annotations

import pytest

from signoff.core.access import User
from signoff.core.log import LogLine
from signoff.errors import Conflict
from signoff.records import ERASED_EMAIL, ReceiptFilter
from support.stores import AStore, a_call, a_step, held, inserted, logged

pytestmark = pytest.mark.anyio


async def a_disabled_user(store: AStore) -> User:
    await store.people.put_user("root@example.com", "admin")
    user = await store.people.put_user("ann@example.com", "user", "hash")
    await store.people.add_token(user.id, "digest", kind="api", name="laptop", role="user")
    disabled = await store.people.change_user(user.id, active=False)
    assert disabled is not None
    return disabled


async def test_only_ended_jobs_of_the_user_are_deleted(store: AStore) -> None:
    user = await a_disabled_user(store)
    ended, open_job, foreign = [
        await inserted(store, status=status, user_id=user_id)
        for status, user_id in (("success", user.id), ("bot", user.id), ("success", user.id + 1))
    ]
    call = a_call(user_id=user.id)
    await logged(store, call)
    ids = [ended.id, open_job.id, foreign.id, call.id, "nobody"]
    assert await store.erasures.delete_jobs(user.id, ids) == 2
    assert [await store.jobs.get(job_id) is not None for job_id in ids] == [False, True, True, False, False]
    assert await store.jobs.events(ended.id) == []
    assert await store.erasures.delete_jobs(user.id, ids) == 0


async def test_log_lines_that_name_a_deleted_job_are_deleted(store: AStore) -> None:
    user = await a_disabled_user(store)
    jobs = [await inserted(store, status="success", user_id=user.id, id=f"0193_%a{name}") for name in "bcde"]
    texts = ["nothing", "for 0193_%Ab, and more", "0193_%ac 0193_%ad", "0193_%af", "0193xa", "0193_%ae" * 2]
    lines = [("m", LogLine(at=number, level="info", text=text)) for number, text in enumerate(texts)]
    await store.model_logs.add(lines, max_lines=100)
    await store.erasures.delete_jobs(user.id, [])
    assert len(await store.model_logs.read("m", 100)) == len(texts)
    await store.erasures.delete_jobs(user.id, [job.id for job in jobs])
    assert [line.text for line in await store.model_logs.read("m", 100)] == ["nothing", "0193_%af", "0193xa"]


async def test_receipts_stay_without_their_salts(store: AStore) -> None:
    user = await a_disabled_user(store)
    job = await held(store, user_id=user.id, id="held")
    from contracts.test_receipts import decided
    from signoff.core.job import Decision

    await decided(store, job, Decision(verdict="reject", reviewer="bob"))
    await store.erasures.delete_jobs(user.id, [job.id])
    [_, row] = await store.receipts.page(ReceiptFilter())
    assert (row.salt, b'"held"' in row.line) == (None, True)


async def test_an_erasure_is_pending_until_it_is_finished_and_may_begin_again(store: AStore, other: AStore) -> None:
    user = await a_disabled_user(store)
    assert await store.erasures.pending(10) == []
    for _ in range(2):
        await store.erasures.begin(user.id)
        [pending] = await other.erasures.pending(10)
        assert pending.user_id == user.id
        assert 0 <= pending.age_seconds < 600
    await store.erasures.finish(user.id, is_final=False)
    assert await store.people.user("ann@example.com") is None
    anonymous = await store.people.user(ERASED_EMAIL.format(user.id))
    assert anonymous is not None
    assert (anonymous.active, anonymous.password_hash) == (False, None)
    assert len(await other.erasures.pending(10)) == 1
    await store.erasures.finish(user.id, is_final=True)
    assert await other.erasures.pending(10) == []


async def test_tokens_of_an_erased_user_are_refused_and_lose_their_names(store: AStore) -> None:
    user = await a_disabled_user(store)
    await store.erasures.begin(user.id)
    await store.people.change_user(user.id, active=True)  # enabled by mistake
    assert await store.people.token("digest") is None


async def test_only_disabled_users_are_erased(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    with pytest.raises(Conflict):
        await store.erasures.begin(user.id)
    assert await store.erasures.pending(10) == []


async def test_a_late_worker_of_an_erased_job_changes_nothing(store: AStore) -> None:
    user = await a_disabled_user(store)
    job = await inserted(store, user_id=user.id, lease="mine", lease_seconds=60)
    await store.jobs.transition(job.id, a_step("cancel"))
    await store.erasures.delete_jobs(user.id, [job.id])
    from signoff.errors import JobNotFound

    with pytest.raises(JobNotFound):
        await store.jobs.transition(job.id, a_step("succeed"))
