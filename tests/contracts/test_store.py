"""Contract tests of `store.Store`, run against every store, and of the rules that depend on it."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy as sa

from contracts.test_streams import a_stream
from signoff.core.backlog import Backlog
from signoff.core.delivery import DeliveryTarget
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, TERMINAL, Decision, Draft, Edit, Job, JobError, Verdict
from signoff.core.model import Model
from signoff.core.price import Price
from signoff.core.reviews.policy import JobPolicy
from signoff.core.reviews.rules import ReviewPolicy
from signoff.core.tokens import Usage
from signoff.core.transitions import TRANSITIONS, Guard, replay
from signoff.core.turn import BEFORE_ALL_USERS, Turn
from signoff.errors import Conflict, IdTaken, JobNotFound, Overloaded, Stale, TokenExpired
from signoff.store import TransitionRequest
from signoff.stores import schema
from signoff.stores.people_schema import users
from signoff.stores.writer import MAX_DEFERRED
from signoff.work.reviews.desk import verdict_transition
from support.stores import (
    ANSWER,
    AStore,
    ChangeRecorder,
    a_call,
    a_job,
    a_step,
    execute,
    held,
    inserted,
    is_refused,
    leased,
    listening,
    logged,
    rows,
    state,
    store_at,
    together,
)
from support.turns import chosen_in_turns

pytestmark = pytest.mark.anyio

PAST, FUTURE = 1, 2**60
JOB_TIMES = ("created_at", "updated_at", "due_at")
SECOND_US = 1_000_000
RETRYABLE = JobError(code="model_unreachable", message="Nobody there.", status=502)
FINAL = JobError(code="model_error", message="No.", status=400)
RICH: dict[str, Any] = {
    "response": ANSWER,
    "error": FINAL,
    "usage": Usage(prompt_tokens=1),
    "metadata": b'{"a":[1]}',
    "policy": JobPolicy(review="always"),
    "deliver": (DeliveryTarget(address="http://a.test/", host="a.test", sealed=b"\0\xff"),),
    "draft": Draft(response='"d"'),
    "decision": Decision(verdict="reject", reviewer="ann", reason="No."),
    "cache": "miss",
}
PLAIN = Job.__struct_fields__[11:]
NUMBERS = [name for name in PLAIN if name not in RICH and str(Job.__annotations__[name]).startswith("int")]
TEXTS = [name for name in PLAIN if name not in RICH and str(Job.__annotations__[name]).startswith("str")]


# New jobs


async def test_a_new_job_is_stored_unchanged_with_the_times_of_the_database(store: AStore) -> None:
    job = a_job(metadata=b'{"a":[1]}', priority=7, policy=JobPolicy(review="always"), retry_of="old", fingerprint="f")

    before = time.time() * SECOND_US
    stored = await store.jobs.insert(job, actor="user:ann", due_seconds=60)

    assert before - 5 * SECOND_US < stored.created_at < time.time() * SECOND_US + 5 * SECOND_US
    assert stored == msgspec.structs.replace(
        job, created_at=stored.created_at, updated_at=stored.created_at, due_at=stored.created_at + 60 * SECOND_US
    )
    assert await store.jobs.get(stored.id) == stored
    [event] = await store.jobs.events(stored.id)
    assert (event.seq, event.verb, event.actor, event.at) == (1, "submit", "user:ann", stored.created_at)


async def test_every_field_of_a_new_job_is_stored_and_can_be_replayed(store: AStore) -> None:
    numbers = {name: number for number, name in enumerate(NUMBERS, start=1)}
    texts = {name: f"{name} é \N{SNOWMAN}" for name in TEXTS}
    full = a_job(**numbers, **texts, **RICH)

    bare, stored, other = await together(store.jobs.insert(job, actor="test") for job in (a_job(), full, a_job()))

    for job in (bare, stored, other):
        assert await store.jobs.get(job.id) == job
    times = {"created_at": stored.created_at, "updated_at": stored.created_at, "due_at": stored.created_at}
    assert stored == msgspec.structs.replace(full, lease_until=None, **times)
    fields = msgspec.json.decode(msgspec.json.encode(stored)) | {"metadata": {"a": [1]}}
    assert replay(await store.jobs.events(stored.id)) == {
        name: value
        for name, value in fields.items()
        if value is not None and name not in {"body", "response", "deliver"}
    }


async def test_a_job_can_be_inserted_with_a_lease(store: AStore) -> None:
    job = await leased(store)

    assert job.lease_until == job.created_at + 60 * SECOND_US
    assert await store.jobs.claim(actor="worker", lease="other", limit=1, lease_seconds=1) == []


def with_result(user_id: int, client_id: str, **more: Any) -> Job:
    """Return a job whose result goes to Redis under the client id."""
    target = DeliveryTarget(kind="redis", address=f"signoff:{client_id}", host="redis")
    return a_job(user_id=user_id, client_id=client_id, deliver=(target,), **more)


async def test_a_key_for_a_result_belongs_to_the_job_of_one_user(store: AStore) -> None:
    first = await store.jobs.insert(with_result(1, "order-1"), actor="ann")
    # the same user gets the job again, and another one gets an error, for as long as the job exists
    assert (await store.jobs.insert(with_result(1, "order-1"), actor="ann")).id == first.id
    for _ in range(2):
        with pytest.raises(IdTaken, match="order-1"):
            await store.jobs.insert(with_result(2, "order-1", idempotency_key="k"), actor="bob")
    assert await store.jobs.by_client_id(2, "order-1") is None
    # other ids are free, and so is this one without a result in Redis, or under another key
    for job in (with_result(2, "order-2"), a_job(user_id=2, client_id="order-1")):
        assert (await store.jobs.insert(job, actor="bob")).id == job.id


async def test_the_same_client_id_at_another_door_is_another_job_and_the_newest_has_the_result(
    store: AStore, other: AStore
) -> None:
    doors = ("generate", "chat_completion")
    first, second = [await store.jobs.insert(with_result(1, "order-1", door=door), actor="ann") for door in doors]
    assert first.id != second.id
    for door, job in zip(doors, (first, second), strict=True):
        assert (await other.jobs.insert(with_result(1, "order-1", door=door), actor="ann")).id == job.id
    assert await other.jobs.by_client_id(1, "order-1") == second
    # the key stays with the user, also when the first job is gone
    await store.jobs.transition(first.id, a_step("cancel"))
    await store.jobs.purge(-1, 10)
    with pytest.raises(IdTaken, match="order-1"):
        await other.jobs.insert(with_result(2, "order-1"), actor="bob")


async def test_of_two_users_who_use_one_key_for_a_result_at_once_one_wins(store: AStore) -> None:
    jobs = [with_result(user_id, "order-1") for user_id in range(1, 9)]
    results = await asyncio.gather(*(store.jobs.insert(job, actor="x") for job in jobs), return_exceptions=True)
    assert sorted(isinstance(result, IdTaken) for result in results) == [False] + [True] * 7


async def test_the_key_for_a_result_is_free_when_its_job_is_purged(store: AStore) -> None:
    first = await store.jobs.insert(with_result(1, "order-1"), actor="ann")
    await store.jobs.transition(first.id, a_step("cancel"))
    await store.jobs.purge(-1, 10)
    assert await store.jobs.get(first.id) is None
    second = with_result(2, "order-1")
    assert (await store.jobs.insert(second, actor="bob")).id == second.id


async def test_a_job_id_can_be_used_once(store: AStore) -> None:
    job = await inserted(store)

    with pytest.raises(sa.exc.IntegrityError):
        await store.jobs.insert(msgspec.structs.replace(job, target="another"), actor="test")

    assert await store.jobs.get(job.id) == job


async def test_an_unknown_job_is_none_and_has_no_events(store: AStore) -> None:
    assert await state(store, "nobody") == (None, [])


async def test_the_same_idempotency_key_returns_the_existing_job(store: AStore, other: AStore) -> None:
    first = await inserted(store, idempotency_key="k")

    assert await inserted(store, idempotency_key="k") == first
    assert await inserted(other, idempotency_key="k") == first
    assert await other.jobs.existing(a_job(idempotency_key="k")) == first
    assert await other.jobs.existing(a_job(idempotency_key="free")) is None
    assert await store.jobs.count(JobFilter(), at_most=10_000) == 1


@pytest.mark.law
async def test_fifty_concurrent_inserts_with_one_key_create_one_job(store: AStore, other: AStore) -> None:
    jobs = await together(inserted([store, other][turn % 2], idempotency_key="k") for turn in range(50))

    assert len({job.id for job in jobs}) == 1
    assert await store.jobs.list(JobFilter()) == jobs[:1]


@pytest.mark.law
async def test_two_processes_with_one_key_create_one_job(store: AStore, other: AStore) -> None:
    for key in map(str, range(30)):
        one, two = await together(inserted(each, idempotency_key=key) for each in (store, other))
        assert one == two
    assert await store.jobs.count(JobFilter(), at_most=10_000) == 30


async def test_concurrent_inserts_with_several_keys_create_one_job_each(store: AStore, other: AStore) -> None:
    keys = [str(number % 5) for number in range(30)]

    jobs = await together(inserted([store, other][number % 2], idempotency_key=key) for number, key in enumerate(keys))

    assert [job.idempotency_key for job in jobs] == keys
    assert len({job.id for job in jobs}) == await store.jobs.count(JobFilter(), at_most=10_000) == 5


async def test_a_key_that_became_free_is_used_by_one_new_job(store: AStore, other: AStore) -> None:
    for key in map(str, range(15)):
        failed = await leased(store, idempotency_key=key)
        await store.jobs.transition(failed.id, a_step("fail", changes={"error": RETRYABLE}))
        one, two = await together(inserted(each, idempotency_key=key) for each in (store, other))
        assert one == two
        assert one.id != failed.id


async def test_a_client_id_is_one_job_under_any_concurrency(store: AStore, other: AStore) -> None:
    jobs = await together(inserted([store, other][turn % 2], client_id="mine") for turn in range(50))

    assert {job.id for job in jobs} == {jobs[0].id}
    assert await other.jobs.by_client_id(jobs[0].user_id, "mine") == jobs[0]
    assert await other.jobs.by_client_id(jobs[0].user_id + 1, "mine") is None
    assert (await inserted(store, client_id="mine", user_id=jobs[0].user_id + 1)).id != jobs[0].id
    await store.jobs.transition(jobs[0].id, a_step("cancel", changes={"error": None}))
    assert (await inserted(store, client_id="mine")).id == jobs[0].id


async def test_another_user_may_use_the_same_key(store: AStore) -> None:
    mine = await inserted(store, idempotency_key="k", user_id=1)
    theirs = await inserted(store, idempotency_key="k", user_id=2)

    assert mine.id != theirs.id


async def test_a_key_creates_a_new_job_after_a_retryable_error(store: AStore) -> None:
    failed = await leased(store, idempotency_key="k")
    failed = await store.jobs.transition(failed.id, a_step("fail", changes={"error": RETRYABLE}))

    again = await inserted(store, idempotency_key="k")

    assert again.id != failed.id
    assert await inserted(store, idempotency_key="k") == again
    assert await store.jobs.get(failed.id) == failed, "terminal is terminal: its row does not change"


@pytest.mark.parametrize("verb", ["succeed", "fail", "hold"])
async def test_a_key_returns_a_job_that_ended_without_a_retryable_error(store: AStore, verb: str) -> None:
    job = await leased(store, idempotency_key="k")
    job = await store.jobs.transition(job.id, a_step(verb, changes={"error": FINAL}))

    assert await inserted(store, idempotency_key="k") == job


async def test_an_idempotency_key_expires_after_a_day(store: AStore) -> None:
    old = await inserted(store, idempotency_key="k")
    day = 24 * 3600 * SECOND_US
    table = schema.jobs

    await execute(store, sa.update(table).values(created_at=old.created_at - day + 60 * SECOND_US))
    assert (await inserted(store, idempotency_key="k")).id == old.id

    await execute(store, sa.update(table).values(created_at=old.created_at - day - 1))
    assert (await inserted(store, idempotency_key="k")).id != old.id


async def test_a_job_inserted_as_ended_is_one_row_and_one_event(store: AStore) -> None:
    ended = a_job(status="success", lane="now", response=ANSWER, usage=Usage(total_tokens=3), attempt=2)

    job = await store.jobs.insert_ended(ended, actor="user:ann", verbs=["submit", "claim", "succeed"])

    await assert_is_stored_at_once(store, ended, job.created_at)
    assert job == await store.jobs.get(ended.id)
    with pytest.raises(sa.exc.IntegrityError):  # it may have been committed before, although the result was lost
        await store.jobs.insert_ended(ended, actor="user:ann", verbs=["submit", "claim", "succeed"])


async def test_a_logged_call_is_a_job_with_one_event(store: AStore) -> None:
    ended = a_call(usage=Usage(total_tokens=10**30), attempt=2, upstream_object_id="o", body=b"\0\xff")

    created_at = await (await store.jobs.log_call(ended, actor="user:ann", verbs=["submit", "claim", "succeed"]))

    await assert_is_stored_at_once(store, ended, created_at)


async def assert_is_stored_at_once(store: AStore, ended: Job, created_at: int) -> None:
    job = await store.jobs.get(ended.id)
    assert job == msgspec.structs.replace(ended, created_at=created_at, updated_at=created_at, due_at=created_at)
    [event] = await store.jobs.events(ended.id)
    assert (event.verb, event.actor, event.at) == ("succeed", "user:ann", created_at)
    assert event.data["moves"] == ["submit", "claim", "succeed"]
    assert follows(job, replay([event]))
    assert await store.jobs.statuses([ended.id, "nobody's"]) == {ended.id: ("success", 1)}


@pytest.mark.parametrize(
    "columns",
    [
        {"idempotency_key": "k"},
        {"client_id": "mine"},
        {"lease": "l"},
        {"round": 1},
        {"deliver": (DeliveryTarget(address="https://example.com/", host="example.com"),)},
        {"parent_id": "run", "parent_round": 0, "node": "0"},
        {"pipeline_id": 1},
    ],
)
async def test_only_a_plain_job_is_logged_as_a_call(store: AStore, columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="insert_ended"):
        await store.jobs.log_call(a_call(**columns), actor="ann", verbs=["submit", "succeed"])


@pytest.mark.parametrize("verb", sorted(TRANSITIONS.keys() - {"submit", "hit", "refuse", "present"}))
async def test_a_logged_call_never_changes(store: AStore, verb: str) -> None:
    call = a_call()
    await logged(store, call)
    with pytest.raises(Stale, match="The job is success; "):
        await store.jobs.transition(call.id, a_step(verb, lease="l", round=0))
    assert [event.verb for event in await store.jobs.events(call.id)] == ["succeed"]


async def test_pages_and_counts_have_jobs_and_calls_in_one_order(store: AStore) -> None:
    # given jobs and calls of two users, in turn
    everything = list[Job]()
    for number in range(24):
        outcome = {"status": ("success", "fail")[number // 4 % 2], "user_id": 1 + number // 2 % 2}
        if number % 2:
            call = a_call(**outcome, upstream_object_id="shared" if number % 3 else None)
            [created_at] = await logged(store, call)
            everything.append(msgspec.structs.replace(call, **dict.fromkeys(JOB_TIMES, created_at)))
        else:
            object_id = "shared" if number % 3 else None
            everything.append(await inserted(store, user_id=outcome["user_id"], upstream_object_id=object_id))
    for status, user_id, object_id, newest_first in itertools.product(
        [None, *STATUSES], [None, 1, 2, 3], [None, "shared"], [False, True]
    ):
        selection = JobFilter(
            status=status, user_id=user_id, upstream_object_id=object_id, newest_first=newest_first, limit=5
        )
        expected = [
            job
            for job in (reversed(everything) if newest_first else everything)
            if status in {None, job.status} and user_id in {None, job.user_id}
            if object_id in {None, job.upstream_object_id}
        ]
        # when they are read page by page, with a cursor or an offset, then every job comes once, in order
        by_cursor, by_offset, after_id = list[Job](), list[Job](), None
        while page := await store.jobs.list(msgspec.structs.replace(selection, after_id=after_id)):
            by_cursor += page
            after_id = page[-1].id
        while page := await store.jobs.list(msgspec.structs.replace(selection, offset=len(by_offset))):
            by_offset += page
        assert by_cursor == by_offset == expected
        assert await store.jobs.count(selection, at_most=1000) == len(expected)
        assert await store.jobs.count(selection, at_most=3) == min(3, len(expected))


async def test_old_calls_are_deleted_like_old_jobs(store: AStore) -> None:
    calls = [a_call() for _ in range(5)]
    await logged(store, *calls)
    [ended, waiting] = [await inserted(store, **columns) for columns in ({}, {})]
    await store.jobs.transition(ended.id, a_step("cancel"))

    assert await store.jobs.purge(3600, 100) == 0
    assert await store.jobs.purge(-1, 4) == 4
    assert await store.jobs.purge(-1, 4) == 2

    assert await store.jobs.purge(-1, 4) == 0
    assert [job.id for job in await store.jobs.list(JobFilter())] == [waiting.id]
    assert [await store.jobs.events(call.id) for call in calls] == [[]] * 5


async def test_a_cache_hit_is_inserted_as_ended_and_has_its_delivery(store: AStore) -> None:
    hook = DeliveryTarget(address="https://example.com/", host="example.com")
    columns = {"status": "success", "response": ANSWER, "cache": "hit", "cache_key": "v-k", "deliver": (hook,)}
    hit = a_job(client_id="mine", idempotency_key="k", **columns)

    job = await store.jobs.insert(hit, actor="user:ann", verb="hit")

    assert job == await store.jobs.get(hit.id)
    assert (job.status, job.response, job.cache, job.cache_key) == ("success", ANSWER, "hit", "v-k")
    [event] = await store.jobs.events(hit.id)
    assert (event.verb, event.actor) == ("hit", "user:ann")
    assert follows(job, replay([event]))
    assert [delivery.job_id for delivery in await store.deliveries.of_job(hit.id)] == [hit.id]
    assert await store.jobs.claim(actor="w", lease="l", limit=9, lease_seconds=9) == []
    # and its client id and its idempotency key find it like any other job
    for identifier in ({"client_id": "mine"}, {"idempotency_key": "k"}):
        assert await store.jobs.insert(a_job(**columns, **identifier), actor="user:ann", verb="hit") == job
        assert (await inserted(store, **identifier)).id == job.id


async def test_a_call_that_is_refused_gives_its_room_back(store: AStore) -> None:
    call = a_call()
    await logged(store, call)

    for _ in range(MAX_DEFERRED + 1):
        with pytest.raises(sa.exc.IntegrityError):
            await logged(store, call)

    await store.close()
    for _ in range(MAX_DEFERRED + 1):
        with pytest.raises(Overloaded):
            await logged(store, a_call())


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_the_row_of_a_call_waits_while_the_database_is_unavailable(
    store: AStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that accepts no writes, such as one whose disk is full
    writer = store._database._writer
    run_group, refused = writer._run_group, asyncio.Event()

    async def refuse(group: object) -> list[Any]:
        refused.set()
        raise Overloaded("The disk is full.")

    writer._run_group = refuse
    call = a_call()
    write = await store.jobs.log_call(call, actor="test", verbs=["submit", "succeed"])
    await refused.wait()
    with pytest.raises(Overloaded):
        await inserted(store)
    assert not write.done()
    # when it accepts writes again, then the row is written
    writer._run_group = run_group
    async with asyncio.timeout(60):
        await write
    assert (await store.jobs.get(call.id)) is not None


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_a_call_that_finds_no_room_to_be_logged_is_refused(store: AStore) -> None:
    writer = store._database._writer
    writer._timeout_seconds = 0.05
    writer._deferred_slots = asyncio.Semaphore(0)
    with pytest.raises(Overloaded):
        await logged(store, a_call())


# Transitions: for each guard, columns with which it holds, and columns with which it fails

HOLDS: dict[Guard, list[dict[str, Any]]] = {
    Guard.DUE: [{"lease": None}],
    Guard.LEASE: [{"lease": "mine", "lease_seconds": 60}, {"lease": "mine", "lease_seconds": -1}],
    Guard.LAPSED: [{"lease": "mine", "lease_seconds": -1}],
    Guard.ROUND: [{"round": 1}],
    Guard.SEEN: [{"seq": 1}],
    Guard.OPENED: [
        {"review_lease": "ann", "review_lease_until": FUTURE},
        {"review_lease": "ann", "review_lease_until": PAST},
    ],
    Guard.UNOPENED: [
        {"review_lease": None, "review_lease_until": None},
        {"review_lease": "ann", "review_lease_until": FUTURE},
        {"review_lease": "bob", "review_lease_until": PAST},
    ],
    Guard.UNDECIDED: [{"release_at": None}],
    Guard.DECIDED: [{"release_at": FUTURE}],
    Guard.UNRELEASED: [{"release_at": FUTURE}],
    Guard.RELEASED: [{"release_at": PAST}],
    Guard.OVERDUE: [{"review_deadline": PAST}],
    Guard.QUIET: [{"settled": 0}],
    Guard.PARKED: [{"parked_at": PAST}],
}
FAILS: dict[Guard, list[dict[str, Any]]] = {
    Guard.DUE: [{"lease": "theirs", "lease_seconds": -1}, {"due_seconds": 60}, {"parked_at": PAST}],
    Guard.LEASE: [
        {"lease": "theirs", "lease_seconds": 60},
        {"lease": "theirs", "lease_seconds": -1},
        {"lease": None, "lease_seconds": None},
    ],
    Guard.LAPSED: [{"lease": "mine", "lease_seconds": 60}, {"lease": None, "lease_seconds": -1}],
    Guard.ROUND: [{"round": 0}, {"round": 2}],
    Guard.SEEN: [{"seq": 2}],
    Guard.OPENED: [
        {"review_lease": "bob", "review_lease_until": PAST},
        {"review_lease": None, "review_lease_until": None},
    ],
    Guard.UNOPENED: [{"review_lease": "bob", "review_lease_until": FUTURE}],
    Guard.UNDECIDED: [{"release_at": FUTURE}, {"release_at": PAST}],
    Guard.DECIDED: [{"release_at": None}],
    Guard.UNRELEASED: [{"release_at": PAST}],
    Guard.RELEASED: [{"release_at": FUTURE}],
    Guard.OVERDUE: [{"review_deadline": FUTURE}, {"review_deadline": None}],
    Guard.QUIET: [{"settled": 1}],
    Guard.PARKED: [{"parked_at": None}],
}
VERBS = [verb for verb, transition in TRANSITIONS.items() if transition.sources]
every_verb = pytest.mark.parametrize("verb", VERBS)


def holding(verb: str) -> Iterator[dict[str, Any]]:
    """Yield columns of jobs for which all guards of `verb` hold."""
    guards = TRANSITIONS[verb].guards
    defaults = {key: value for guard in guards for key, value in HOLDS[guard][0].items()}
    yield defaults
    for guard in guards:
        yield from (defaults | columns for columns in HOLDS[guard][1:])


def failing(verb: str) -> Iterator[dict[str, Any]]:
    """Yield columns of jobs for which exactly one guard of `verb` fails."""
    defaults = next(holding(verb))
    for guard in TRANSITIONS[verb].guards:
        yield from (defaults | columns for columns in FAILS[guard])


def test_every_guard_is_tested() -> None:
    assert set(HOLDS) == set(FAILS) == set(Guard)


def test_only_inserting_transitions_have_no_source_status() -> None:
    assert set(TRANSITIONS) - set(VERBS) == {"submit", "hit", "refuse", "present"}


@every_verb
async def test_a_transition_is_made_if_its_guards_hold(store: AStore, verb: str) -> None:
    transition = TRANSITIONS[verb]

    async def check(source: str, target: str, columns: dict[str, Any]) -> None:
        before = await inserted(store, status=source, attempt=3, draft=Draft(response='"d"'), **columns)
        job = await store.jobs.transition(
            before.id, a_step(verb, seq=1, to=target, changes={"priority": 9}, note={"why": "so"})
        )

        [_, event] = await store.jobs.events(job.id)
        assert job == await store.jobs.get(job.id)
        assert (job.status, job.priority, job.seq) == (target, 9, before.seq + 1)
        assert [getattr(job, column) for column in transition.clears] == [None] * len(transition.clears)
        assert {column: getattr(job, column) - getattr(before, column) for column in transition.adds} == transition.adds
        assert (event.seq, event.verb, event.actor, event.at) == (job.seq, verb, "user:ann", job.updated_at)
        assert {"status": target, "priority": 9, "why": "so"}.items() <= event.data.items()
        changed = {"status", "seq", "updated_at", "priority", *transition.clears, *transition.adds}
        for column in set(Job.__struct_fields__) - changed:
            assert getattr(job, column) == getattr(before, column)

    await together(
        check(source, target, columns)
        for source in transition.sources
        for target in transition.targets
        for columns in holding(verb)
    )


@every_verb
async def test_a_transition_from_any_other_status_is_stale_and_changes_nothing(store: AStore, verb: str) -> None:
    async def check(status: str, columns: dict[str, Any]) -> None:
        job = await inserted(store, status=status, **columns)
        assert await is_refused(store, job, a_step(verb)), (status, columns)

    await together(
        check(status, columns) for status in set(STATUSES) - set(TRANSITIONS[verb].sources) for columns in holding(verb)
    )


@every_verb
async def test_a_transition_whose_guard_fails_is_stale_and_changes_nothing(store: AStore, verb: str) -> None:
    async def check(source: str, columns: dict[str, Any]) -> None:
        job = await inserted(store, status=source, **columns)
        assert await is_refused(store, job, a_step(verb, seq=1)), columns

    await together(check(source, columns) for source in TRANSITIONS[verb].sources for columns in failing(verb))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if {Guard.LEASE, Guard.ROUND} & {*TRANSITIONS[verb].guards}])
async def test_without_a_lease_or_a_round_a_caller_cannot_settle_or_decide(store: AStore, verb: str) -> None:
    job = await inserted(store, status=TRANSITIONS[verb].sources[0], **next(holding(verb)) | {"lease": None})

    assert await is_refused(store, job, a_step(verb, lease=None, round=None))


def test_no_transition_leaves_a_terminal_status() -> None:
    assert [verb for verb, transition in TRANSITIONS.items() if TERMINAL & {*transition.sources}] == []


async def test_a_transition_of_an_unknown_job_raises_job_not_found(store: AStore) -> None:
    with pytest.raises(JobNotFound):
        await store.jobs.transition("nobody", a_step("cancel"))


async def test_a_stale_worker_cannot_settle(store: AStore) -> None:
    job = await inserted(store, lease="mine", lease_seconds=-1)
    await store.jobs.transition(job.id, a_step("lapse", to="bot", after_seconds={"due_at": 0}))
    [claimed] = await store.jobs.claim(actor="worker:2", lease="theirs", limit=1, lease_seconds=60)

    assert await is_refused(store, claimed, a_step("succeed", changes={"response": b'"late"'}))

    settled = await store.jobs.transition(job.id, a_step("succeed", lease="theirs", changes={"response": ANSWER}))
    assert (settled.status, settled.response) == ("success", ANSWER)


async def test_a_stale_sweeper_cannot_grant_another_attempt(store: AStore) -> None:
    job = await inserted(store, lease="mine", lease_seconds=-1, attempt=1, max_attempts=2)
    [lapsed] = await store.jobs.lapsed(1)
    requeue = a_step("lapse", to="bot", lease=lapsed.lease, after_seconds={"due_at": 0})

    await store.jobs.transition(job.id, requeue)
    [claimed] = await store.jobs.claim(actor="worker:2", lease="theirs", limit=1, lease_seconds=-1)

    assert (claimed.attempt, claimed.max_attempts) == (2, 2)
    assert await is_refused(store, claimed, requeue)
    assert await store.jobs.lapsed(1) == [claimed]


async def test_a_stale_sweeper_cannot_apply_an_old_verdict(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, decided("ann", "redo"))
    [released] = await store.jobs.due_for_release(1)
    assert released.decision is not None
    apply_verdict = verdict_transition(released, released.decision, "sweeper")

    await store.jobs.transition(job.id, apply_verdict)
    await store.jobs.claim(actor="worker", lease="mine", limit=1, lease_seconds=60)
    await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))
    second = await store.jobs.transition(job.id, msgspec.structs.replace(decided("bob", "reject"), round=2))

    assert await is_refused(store, second, apply_verdict)
    assert await store.jobs.due_for_release(1) == [second]


async def test_of_concurrent_settlements_one_succeeds(store: AStore, other: AStore) -> None:
    job = await leased(store)

    async def settle(turn: int) -> bool:
        request = a_step("succeed", changes={"response": b"%d" % turn})
        try:
            return bool(await [store, other][turn % 2].jobs.transition(job.id, request))
        except Stale:
            return False

    assert sum(await together(settle(turn) for turn in range(20))) == 1
    assert len(await store.jobs.events(job.id)) == 2


async def test_settlements_that_are_written_together_succeed_or_fail_each_on_its_own(store: AStore) -> None:
    jobs = await together(leased(store) for _ in range(12))
    lost, twice = jobs[3], jobs[7]
    requests = [(job, a_step("succeed", changes={"response": b'"%d"' % turn})) for turn, job in enumerate(jobs)]
    requests[3] = (lost, a_step("succeed", lease="another", changes={"response": ANSWER}))
    requests += [(twice, a_step("succeed", changes={"response": ANSWER})), (a_job(), requests[0][1])]

    calls = [store.jobs.transition(job.id, request) for job, request in requests]
    results = await asyncio.gather(*calls, return_exceptions=True)

    settled = [each for each in results if isinstance(each, Job)]
    assert {job.id for job in settled} == {job.id for job in jobs if job is not lost}
    assert len(settled) == 11
    assert sorted(type(each).__name__ for each in results if not isinstance(each, Job)) == [
        "JobNotFound",
        "Stale",
        "Stale",
    ]
    assert await store.jobs.get(lost.id) == lost
    for job in settled:
        assert await store.jobs.get(job.id) == job
        assert [event.verb for event in await store.jobs.events(job.id)] == ["submit", "succeed"]
    by_id = {job.id: turn for turn, job in enumerate(jobs)}
    assert all(job.response == b'"%d"' % by_id[job.id] for job in settled if job.id != twice.id)


async def test_a_settlement_whose_caller_leaves_is_written_whole_or_not_at_all(store: AStore) -> None:
    jobs = await together(leased(store) for _ in range(12))
    settling = [
        asyncio.ensure_future(store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER})))
        for job in jobs
    ]
    for place, task in enumerate(settling):
        for _ in range(3 * place):  # the group begins meanwhile, and the server answers
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait(settling)
    await inserted(store)  # a later write, after which all earlier ones have ended

    for job in await together(store.jobs.get(job.id) for job in jobs):
        verbs = [event.verb for event in await store.jobs.events(job.id)]
        assert (job.status, verbs) in [("bot", ["submit"]), ("success", ["submit", "succeed"])]


async def test_times_are_relative_to_the_clock_of_the_database(store: AStore) -> None:
    job = await leased(store)

    job = await store.jobs.transition(job.id, a_step("retry", after_seconds={"due_at": 1.5}))

    assert job.due_at == job.updated_at + 1.5 * SECOND_US


# Two transitions in one call


async def test_two_transitions_in_one_call_are_both_recorded(store: AStore) -> None:
    job = await held(store)

    job = await store.jobs.transition(job.id, decided("ann", "approve"), a_step("approve"))

    assert (job.status, job.seq) == ("success", 4)
    assert [event.verb for event in await store.jobs.events(job.id)] == ["submit", "hold", "decide", "approve"]


async def test_a_stale_second_transition_rolls_back_the_first(store: AStore) -> None:
    jobs = await together(held(store) for _ in range(10))

    async def check(turn: int, job: Job) -> None:
        if turn % 2:  # these are written in the same group and must not be affected
            await store.jobs.transition(job.id, decided("ann", "approve"), a_step("approve"))
        else:
            assert await is_refused(store, job, decided("ann", "approve", seconds=60), a_step("approve"))

    await together(check(turn, job) for turn, job in enumerate(jobs))

    done = {job.id for turn, job in enumerate(jobs) if turn % 2}
    assert {row["job_id"] for row in await rows(store, sa.select(schema.decisions))} == done
    assert {row["job_id"] for row in await rows(store, sa.select(schema.votes))} == done


# Decisions


def decided(reviewer: str, verdict: Verdict, seconds: float = 0) -> TransitionRequest:
    """Return the request of a reviewer to decide about a job in its first round."""
    decision = Decision(verdict=verdict, reviewer=reviewer, reason="because")
    return TransitionRequest(
        verb="decide",
        actor=f"user:{reviewer}",
        reviewer=reviewer,
        round=1,
        changes={"decision": decision},
        after_seconds={"release_at": seconds},
        decision=decision,
    )


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("verdict", get_args(Verdict))
async def test_of_two_concurrent_reviewers_one_wins_and_the_other_learns_who(
    store: AStore, other: AStore, verdict: Verdict, seconds: float
) -> None:
    job = await held(store)

    async def decide(store: AStore, reviewer: str) -> Job | Stale:
        effects = [] if seconds else [a_step(verdict)]
        try:
            return await store.jobs.transition(job.id, decided(reviewer, verdict, seconds), *effects)
        except Stale as stale:
            return stale

    one, two = await together([decide(store, "ann"), decide(other, "bob")])

    winner, refusal = ("ann", two) if isinstance(one, Job) else ("bob", one)
    assert isinstance(refusal, Stale)
    assert f"{winner} decided: {verdict}" in refusal.message
    assert refusal.job_id == job.id
    [vote] = await rows(store, sa.select(schema.votes))
    [decision] = await rows(store, sa.select(schema.decisions))
    assert (vote["job_id"], vote["round"], vote["reviewer"], vote["verdict"]) == (job.id, 1, winner, verdict)
    assert (decision["job_id"], decision["round"]) == (job.id, 1)
    assert decision["decision"] == Decision(verdict=verdict, reviewer=winner, reason="because")


async def test_a_refused_reviewer_learns_who_has_the_review_open(store: AStore) -> None:
    job = await held(store)
    changes, after_seconds = {"review_lease": "bob"}, {"review_lease_until": 60}
    await store.jobs.transition(job.id, a_step("open", reviewer="bob", changes=changes, after_seconds=after_seconds))

    with pytest.raises(Stale, match="bob has it open"):
        await store.jobs.transition(job.id, decided("ann", "approve"))


async def test_a_withdrawn_verdict_stays_recorded_beside_that_of_the_next_round(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, decided("ann", "reject", seconds=60))
    await store.jobs.transition(job.id, a_step("undo"))

    assert await is_refused(store, job, decided("bob", "approve"))
    second = msgspec.structs.replace(decided("bob", "approve"), round=2)
    job = await store.jobs.transition(job.id, second, a_step("approve", round=2))

    decisions = await rows(store, sa.select(schema.decisions).order_by(schema.decisions.c.round))
    assert [(row["round"], row["decision"].verdict) for row in decisions] == [(1, "reject"), (2, "approve")]


# Leases


async def claim(store: AStore, limit: int = 100, lease: str = "mine", seconds: float = 60) -> list[Job]:
    return await store.jobs.claim(actor="worker", lease=lease, limit=limit, lease_seconds=seconds)


async def test_jobs_are_claimed_by_priority_then_age(store: AStore) -> None:
    jobs = [await inserted(store, priority=priority) for priority in (5, 1, 9, 5, 9)]
    first, low, high, second, higher = (job.id for job in jobs)

    claimed = [job.id for limit in (1, 2, 100, 100) for job in await claim(store, limit)]

    assert claimed == [high, higher, first, second, low]


async def test_users_take_turns_whatever_their_backlogs(store: AStore) -> None:
    hog = [await inserted(store, user_id=1) for _ in range(30)]
    others = [await inserted(store, user_id=user) for user in (2, 3, 3)]

    claimed, turn = list[Job](), Turn()
    for _ in range(2):
        jobs = await store.jobs.claim(actor="w", lease="l", limit=6, lease_seconds=60, turn=turn)
        claimed += jobs
        turn = Turn(after_user=jobs[-1].user_id)

    assert {job.id for job in others} <= {job.id for job in claimed}
    # and the jobs of each user are claimed in the order of their age
    assert [job.id for job in claimed if job.user_id == 1] == [job.id for job in hog][: len(claimed) - 3]


async def test_a_user_with_jobs_for_later_does_not_hold_a_turn(store: AStore) -> None:
    for user in (1, 2, 3):
        await inserted(store, user_id=user, due_seconds=3600)
    due = await inserted(store, user_id=4)
    assert [job.id for job in await claim(store, limit=1)] == [due.id]


@pytest.mark.parametrize("after_user", [BEFORE_ALL_USERS, 7, 200, 299])
async def test_many_users_with_jobs_for_later_do_not_keep_others_from_their_turn(
    store: AStore, after_user: int
) -> None:
    await together(inserted(store, user_id=user, due_seconds=3600) for user in range(300))
    due = await inserted(store, user_id=300)
    turn = Turn(after_user=after_user)
    claimed = await store.jobs.claim(actor="worker", lease="l", limit=1, lease_seconds=60, turn=turn)
    assert [job.id for job in claimed] == [due.id]


async def test_claims_take_what_the_reference_takes(store: AStore) -> None:
    rng = Random(20)
    waiting = {}
    for _ in range(60):
        due_seconds = rng.choice([-20, -10, 0, 0, 3600])
        fields = {"user_id": rng.randint(-1, 12), "model": rng.choice("abc"), "priority": rng.choice([0, 5, 5, 9])}
        job = await inserted(store, due_seconds=due_seconds, **fields)
        if due_seconds <= 0:
            waiting[job.id] = job
    for _ in range(60):
        limit, full_models = rng.randint(1, 12), tuple(rng.sample("abc", rng.randint(0, 2)))
        full_users = tuple(rng.sample(range(-1, 13), rng.randint(0, 3)))
        turn = Turn(after_user=rng.randint(-2, 12), full_models=full_models, full_users=full_users)
        claimed = await store.jobs.claim(actor="w", lease="l", limit=limit, lease_seconds=60, turn=turn)
        assert [job.id for job in claimed] == [job.id for job in chosen_in_turns(waiting.values(), limit, turn)]
        for job in claimed:
            del waiting[job.id]


async def test_a_claim_sets_a_lease_counts_an_attempt_and_records_an_event(store: AStore) -> None:
    inserted_job = await inserted(store)

    [job] = await claim(store)

    assert (job.lease, job.lease_until, job.attempt) == ("mine", job.updated_at + 60 * SECOND_US, 1)
    assert job == await store.jobs.get(inserted_job.id)
    [_, event] = await store.jobs.events(inserted_job.id)
    assert (event.verb, event.actor, event.seq, event.data["attempt"]) == ("claim", "worker", 2, 1)


async def test_only_due_unleased_jobs_of_the_later_lane_are_claimed(store: AStore) -> None:
    due = await inserted(store)
    await inserted(store, due_seconds=60)
    await inserted(store, lane="now")
    await leased(store)
    for status in set(STATUSES) - {"bot"}:
        await inserted(store, status=status)

    assert [job.id for job in await claim(store)] == [due.id]
    assert await claim(store) == []


async def test_concurrent_claims_never_return_one_job_twice(store: AStore, other: AStore) -> None:
    inserted_jobs = await together(inserted(store) for _ in range(50))

    claims = await together(claim([store, other][turn % 2], limit=3, lease=f"lease-{turn}") for turn in range(20))

    claimed = [job.id for jobs in claims for job in jobs]
    assert max(map(len, claims)) <= 3
    assert len(claimed) == len({*claimed})
    assert sorted(claimed + [job.id for job in await claim(store)]) == [job.id for job in inserted_jobs]


@pytest.mark.law
async def test_two_processes_never_claim_the_same_job(store: AStore, other: AStore) -> None:
    inserted_jobs = await together(inserted(store) for _ in range(60))

    for _ in range(15):
        one, two = await together(claim(each, limit=3, lease=lease) for each, lease in ((store, "one"), (other, "two")))
        assert {job.id for job in one} & {job.id for job in two} == set()

    assert [job.attempt for job in await store.jobs.list(JobFilter(limit=100))] == [1] * len(inserted_jobs)


async def test_renew_extends_only_leases_that_the_caller_holds(store: AStore) -> None:
    mine, theirs, free = await leased(store), await leased(store), await inserted(store)
    lapsed = await inserted(store, lease="mine", lease_seconds=-1)
    leases = {mine.id: "mine", theirs.id: "theirs", free.id: "mine", lapsed.id: "mine", "nobody": "mine"}

    renewed = await store.jobs.renew(leases, 1000)

    assert renewed == {mine.id, lapsed.id}
    extended = await store.jobs.get(mine.id)
    assert extended is not None
    assert (extended.lease_until or 0) >= (mine.lease_until or 0) + 900 * SECOND_US
    assert extended.seq == mine.seq
    assert await store.jobs.get(theirs.id) == theirs
    assert await store.jobs.get(free.id) == free
    assert await store.jobs.lapsed(10) == []


async def test_renew_requires_the_lease_of_the_same_job(store: AStore) -> None:
    one = await inserted(store, lease="one", lease_seconds=60)
    two = await inserted(store, lease="two", lease_seconds=60)

    assert await store.jobs.renew({one.id: "two", two.id: "one"}, 1000) == set()
    assert await store.jobs.list(JobFilter()) == [one, two]


async def test_renew_accepts_no_leases_and_thousands_of_leases(store: AStore) -> None:
    job = await leased(store)

    assert await store.jobs.renew({}, 60) == set()
    assert await store.jobs.renew({f"none-{n}": "mine" for n in range(3000)} | {job.id: "mine"}, 60) == {job.id}


async def test_lapsed_released_and_overdue_jobs_are_listed(store: AStore) -> None:
    lapsed = [await inserted(store, lease="mine", lease_seconds=-1) for _ in range(3)]
    released = [await inserted(store, status="human", release_at=PAST) for _ in range(3)]
    overdue = [await inserted(store, status="human", review_deadline=PAST) for _ in range(3)]
    await inserted(store)
    await leased(store)
    await inserted(store, status="human", release_at=FUTURE, review_deadline=PAST)
    await inserted(store, status="human", review_deadline=FUTURE)
    await inserted(store, status="success", release_at=PAST, review_deadline=PAST, lease="mine", lease_seconds=-1)

    for expected, list_jobs in (
        (lapsed, store.jobs.lapsed),
        (released, store.jobs.due_for_release),
        (overdue, store.jobs.overdue),
    ):
        assert sorted(await list_jobs(10), key=lambda job: job.id) == expected
        assert len(await list_jobs(2)) == 2


# Replay: the events of a job give its row

REQUESTS: dict[str, list[dict[str, Any]]] = {
    "claim": [{"changes": {"lease": "mine"}, "after_seconds": {"lease_until": when}} for when in (60, -1)],
    "release": [{}],
    "retry": [{"changes": {"error": RETRYABLE, "attempt": 2}, "after_seconds": {"due_at": when}} for when in (0, 60)],
    "lapse": [{"to": "bot", "after_seconds": {"due_at": 0}}, {"to": "fail", "changes": {"error": RETRYABLE}}],
    "park": [{"settled_steps": 0, "after_seconds": {"parked_at": 0}}],
    "wake": [{"after_seconds": {"due_at": 0}}],
    "hold": [
        {"changes": {"response": ANSWER, "usage": Usage(total_tokens=3), "error": None, "attempt": 1}},
        {"changes": {"response": b'"held"'}, "after_seconds": {"review_deadline": -1}},
        {"changes": {"response": b"null"}, "after_seconds": {"review_deadline": 60}},
    ],
    "succeed": [{"changes": {"response": ANSWER, "usage": None, "error": None, "attempt": 1}}],
    "fail": [{"changes": {"error": FINAL}}],
    "open": [
        {"changes": {"review_lease": who}, "after_seconds": {"review_lease_until": when}}
        for who, when in (("ann", 60), ("bob", 60), ("bob", -1))
    ],
    "renew": [{"after_seconds": {"review_lease_until": 60}}],
    "leave": [{}],
    "assign": [{"changes": {"assignee": "bob", "review_queue": "legal"}}, {"changes": {"assignee": None}}],
    "escalate": [
        {"changes": {"review_queue": "chief", "assignee": None}, "after_seconds": {"escalated_at": 0}},
    ],
    "vote": [{"note": {"votes": 1}}],
    "draft": [{"changes": {"draft": Draft(payload='{"a":1}')}}, {"changes": {"draft": Draft(response='"b"')}}],
    "decide": [
        {"changes": {"decision": decision}, "after_seconds": {"release_at": when}, "decision": decision}
        for decision in (
            Decision(verdict="approve", reviewer="ann", edit=Edit(response='"e"')),
            Decision(verdict="redo", reviewer="ann"),
        )
        for when in (-1, 60)
    ],
    "undo": [{}],
    "approve": [{}, {"changes": {"response": b'"edited"'}}],
    "redo": [
        {"changes": {"attempt": 0, "lane": "later"}, "after_seconds": {"due_at": 0}},
        {"changes": {"body": b'"again"', "attempt": 0}, "note": {"body_before": msgspec.Raw(b"{}")}},
    ],
    "reject": [{"changes": {"error": JobError(code="rejected", message="No.", status=403)}}],
    "cancel": [{"changes": {"error": FINAL, "attempt": 1}}],
    "expire": [
        {"to": "human"},
        {"to": "success", "changes": {"decision": Decision(verdict="approve", reviewer="policy")}},
        {"to": "fail", "changes": {"error": FINAL}},
    ],
}


def follows(job: Job, replayed: dict[str, Any]) -> bool:
    """Return True if `job` equals its replayed events; the body is only in the row."""
    row = msgspec.json.decode(msgspec.json.encode(job)) | {"metadata": msgspec.json.decode(job.metadata)}
    row["response"] = None if job.response is None else msgspec.json.decode(job.response)
    return {name: row[name] for name in row.keys() & replayed.keys()} == {
        name: value for name, value in replayed.items() if name in row
    }


MODEL: dict[Guard, Callable[[Job, float], bool]] = {
    Guard.DUE: lambda job, now: job.lease is None and job.parked_at is None and job.due_at <= now,
    Guard.LEASE: lambda job, now: job.lease == "mine",
    Guard.LAPSED: lambda job, now: job.lease is not None and (job.lease_until or 0) < now,
    Guard.ROUND: lambda job, now: True,
    Guard.SEEN: lambda job, now: True,
    Guard.OPENED: lambda job, now: job.review_lease == "ann",
    Guard.UNOPENED: lambda job, now: job.review_lease != "bob" or (job.review_lease_until or 0) < now,
    Guard.UNDECIDED: lambda job, now: job.release_at is None,
    Guard.DECIDED: lambda job, now: job.release_at is not None,
    Guard.UNRELEASED: lambda job, now: job.release_at is not None and job.release_at > now,
    Guard.RELEASED: lambda job, now: job.release_at is not None and job.release_at <= now,
    Guard.OVERDUE: lambda job, now: job.review_deadline is not None and job.review_deadline <= now,
    Guard.QUIET: lambda job, now: True,  # these jobs have no steps
    Guard.PARKED: lambda job, now: job.parked_at is not None,
}


def is_allowed(job: Job, verb: str) -> bool:
    """Return True if `verb` is allowed for Ann, who has seen `job`.

    Now is 30 seconds ahead, which is before every future time in a walk.
    """
    now = (time.time() + 30) * SECOND_US
    return job.status in TRANSITIONS[verb].sources and all(MODEL[guard](job, now) for guard in TRANSITIONS[verb].guards)


def test_every_verb_has_requests_for_the_walk() -> None:
    assert set(REQUESTS) == set(VERBS)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.long)])
async def test_replaying_a_jobs_events_gives_its_row(store: AStore, rounds: int) -> None:
    for first in range(0, rounds * 40, 40):
        await together(walk(store, Random(first + number)) for number in range(40))


async def walk(store: AStore, rng: Random) -> None:
    """Apply random transitions to a new job; one in six is chosen among all verbs and may be refused.

    Final states are chosen rarely, so that few walks end early.
    """
    job = await inserted(store, metadata=b'{"m":1}', priority=rng.randrange(10))

    for _ in range(rng.randrange(30)):
        allowed = [verb for verb in VERBS if is_allowed(job, verb)]
        continuing = [verb for verb in allowed if not {*TRANSITIONS[verb].targets} <= TERMINAL]
        not_cancelled = [verb for verb in allowed if verb != "cancel"]
        verb = rng.choice(rng.choice([continuing, continuing, continuing, continuing, not_cancelled, VERBS]) or VERBS)
        request = a_step(verb, round=job.round, seq=job.seq, **rng.choice(REQUESTS[verb]))
        assert await is_refused(store, job, request) == (verb not in allowed)
        job = await store.jobs.get(job.id)
        assert job is not None

    events = await store.jobs.events(job.id)
    assert [event.seq for event in events] == list(range(1, job.seq + 1))
    assert job.status in TRANSITIONS[events[-1].verb].targets
    assert follows(job, replay(events))
    assert replay(events).keys() >= {"status", "seq", "updated_at", "created_at", "priority", "metadata"}


# Lists and counts


async def test_jobs_are_listed_in_pages_from_either_end(store: AStore) -> None:
    jobs = [await inserted(store) for _ in range(5)]

    assert await store.jobs.list(JobFilter()) == jobs
    assert await store.jobs.list(JobFilter(limit=2)) == jobs[:2]
    assert await store.jobs.list(JobFilter(limit=2, after_id=jobs[1].id)) == jobs[2:4]
    assert await store.jobs.list(JobFilter(limit=2, offset=3)) == jobs[3:]
    assert await store.jobs.list(JobFilter(limit=2, newest_first=True)) == jobs[:2:-1]
    assert await store.jobs.list(JobFilter(after_id=jobs[1].id, newest_first=True)) == jobs[:1]
    assert await store.jobs.list(JobFilter(limit=0)) == []


@pytest.mark.parametrize("newest_first", [False, True])
async def test_a_page_of_jobs_ends_at_its_bytes_and_has_one_job_at_least(store: AStore, newest_first: bool) -> None:
    # jobs of both tables: one that ended before it was stored has about 200 bytes more
    large = {"body": b'"' + b"x" * 10_000 + b'"'}
    stored = [await inserted(store, **large) for _ in range(4)]
    ended = [a_job(status="success", lane="now", response=large["body"], **large) for _ in range(3)]
    await logged(store, *ended)
    ids = sorted((job.id for job in [*stored, *ended]), reverse=newest_first)
    for max_bytes, fewest in ((1, 1), (25_000, 2), (10**9, 7)):
        pages, after_id, may_continue = list[list[str]](), None, True
        while may_continue:
            page_filter = JobFilter(after_id=after_id, newest_first=newest_first, limit=7, max_bytes=max_bytes)
            page = await store.jobs.list(page_filter)
            pages.append([job.id for job in page])
            after_id, may_continue = page[-1].id if page else None, bool(page) and page.may_continue
        assert [job_id for page in pages for job_id in page] == ids
        assert max(map(len, pages)) >= fewest
        assert all(len(page) <= 1 or len(page) * 10_000 < max_bytes + 20_500 for page in pages)
    assert not (await store.jobs.list(JobFilter(limit=8))).may_continue


async def test_jobs_are_filtered_and_counted_by_owner_and_status(store: AStore) -> None:
    mine, held_one, theirs = await inserted(store), await held(store), await inserted(store, user_id=2)
    with_fingerprint, with_upstream_object = (
        await inserted(store, fingerprint="print"),
        await inserted(store, upstream_object_id="resp_1"),
    )

    for criteria, expected in (
        (JobFilter(), [mine, held_one, theirs, with_fingerprint, with_upstream_object]),
        (JobFilter(user_id=1), [mine, held_one, with_fingerprint, with_upstream_object]),
        (JobFilter(status="bot"), [mine, theirs, with_fingerprint, with_upstream_object]),
        (JobFilter(user_id=1, status="human"), [held_one]),
        (JobFilter(user_id=3), []),
        (JobFilter(user_id=1, fingerprint="print"), [with_fingerprint]),
        (JobFilter(status="human", fingerprint="print"), []),
        (JobFilter(upstream_object_id="resp_1"), [with_upstream_object]),
        (JobFilter(upstream_object_id="resp_2"), []),
    ):
        assert await store.jobs.list(criteria) == expected
        assert await store.jobs.count(criteria, at_most=10_000) == len(expected)
        assert await store.jobs.count(criteria, at_most=2) == min(2, len(expected))


async def test_the_backlog_of_a_user_is_that_of_all_unfinished_jobs(store: AStore) -> None:
    assert await store.jobs.backlog(1, at_most=10) == Backlog(0, 0)
    waiting = [await inserted(store, due_seconds=1e6, body=b"12345", metadata=b"{}") for _ in range(3)]
    await inserted(store, body=b"12345", metadata=b"{}", lane="now")
    one = await held(store)
    await inserted(store, user_id=2)
    await inserted(store, status="success")
    held_bytes = len(one.body) + len(one.metadata) + len(one.response or b"")
    assert held_bytes > 0
    assert await store.jobs.backlog(1, at_most=10) == Backlog(5, 4 * 7 + held_bytes)
    assert await store.jobs.backlog(1, at_most=2) == Backlog(3, 2 * 7 + held_bytes)
    await store.jobs.transition(waiting[0].id, a_step("cancel"))
    assert (await store.jobs.backlog(1, at_most=10)).jobs == 4


async def test_the_depth_of_the_queue_is_that_of_due_jobs_that_nobody_has_claimed(store: AStore) -> None:
    assert await store.jobs.queue_depths(at_most=10) == []
    user = await store.people.put_user("ann@example.com", "user")
    admin = await store.people.put_user("bob@example.com", "admin")
    for user_id, due_seconds, priority in ((user.id, -50, 5), (user.id, -100, 0), (user.id, 0, 9), (admin.id, -10, 5)):
        await inserted(store, user_id=user_id, due_seconds=due_seconds, priority=priority)
    for fields in (
        {"due_seconds": 1000},
        {"lane": "now"},
        {"status": "success"},
        {"lease": "mine", "lease_seconds": 60},
    ):
        await inserted(store, user_id=user.id, **fields)
    await held(store, user_id=user.id)
    await inserted(store, user_id=0, due_seconds=-5)

    depths = {each.owner: each for each in await store.jobs.queue_depths(at_most=10)}

    assert {owner: each.jobs for owner, each in depths.items()} == {"user": 3, "admin": 1, "none": 1}
    assert [depths[owner].oldest_seconds // 5 * 5 for owner in ("user", "admin", "none")] == [100, 10, 5]
    assert sum(each.jobs for each in await store.jobs.queue_depths(at_most=2)) == 2


async def test_observers_get_the_transitions_that_were_committed(store: AStore) -> None:
    seen = list[tuple[str, str, str]]()
    store.jobs.observe(lambda job, requests: seen.extend((job.id, job.status, each.verb) for each in requests))
    job = await inserted(store)
    [claimed] = await store.jobs.claim(actor="w", lease="l", limit=5, lease_seconds=60)
    with pytest.raises(Stale):
        await store.jobs.transition(job.id, TransitionRequest(verb="fail", actor="w", lease="other"))
    await store.jobs.transition(job.id, TransitionRequest(verb="fail", actor="w", lease=claimed.lease))
    assert seen == [(job.id, "bot", "claim"), (job.id, "fail", "fail")]


async def test_statuses_are_returned_for_existing_jobs_only(store: AStore) -> None:
    one, two = await inserted(store), await held(store)

    job_ids = [one.id, two.id, *(f"none-{number}" for number in range(3000))]

    assert await store.jobs.statuses(job_ids) == {one.id: ("bot", 1), two.id: ("human", 2)}
    assert await store.jobs.statuses([]) == {}


# People


async def test_a_user_is_created_once_and_changed_by_email_address(store: AStore) -> None:
    user = await store.people.put_user("Ann@Example.com", "user", "hash")
    changed = await store.people.put_user("ann@example.COM", "admin")

    assert (user.email, user.role, user.password_hash, user.active) == ("ann@example.com", "user", "hash", True)
    assert changed == msgspec.structs.replace(user, role="admin")
    assert await store.people.user("ANN@example.com") == changed
    assert await store.people.user("bob@example.com") is None
    assert await store.people.users() == [changed]


async def test_concurrent_creation_of_one_user_creates_one_user(store: AStore, other: AStore) -> None:
    users = await together(
        [store, other][turn % 2].people.put_user("ann@example.com", "reviewer") for turn in range(20)
    )

    assert await store.people.users() == users[:1]
    assert len({user.id for user in users}) == 1


async def test_a_token_identifies_its_user(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "admin")

    token = await store.people.add_token(user.id, "digest", kind="api", name="laptop", role="user")

    assert (token.digest, token.user_id, token.kind, token.name, token.role) == (
        "digest",
        user.id,
        "api",
        "laptop",
        "user",
    )
    assert (token.active, token.expires_at) == (True, None)
    assert await store.people.token("digest") == (token, user)
    assert await store.people.token("another") is None


async def test_a_session_begins_only_with_the_password_that_the_user_has(store: AStore, other: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user", "new-hash")
    session: dict[str, Any] = {"kind": "session", "name": "", "role": "user"}
    for password_hash in ("old-hash", None):
        with pytest.raises(Conflict):
            await store.people.add_token(user.id, "digest", password_hash=password_hash, **session)
    assert (await store.people.add_token(user.id, "digest", password_hash="new-hash", **session)).active
    await store.people.put_user("root@example.com", "admin")
    await other.people.change_user(user.id, active=False)
    with pytest.raises(Conflict):
        await store.people.add_token(user.id, "digest2", password_hash="new-hash", **session)


async def test_a_token_expires_by_the_clock_of_the_database(store: AStore) -> None:
    user, before = await store.people.put_user("ann@example.com", "user"), time.time() * SECOND_US
    expired = await store.people.add_token(user.id, "over", kind="api", name="", role="user", seconds=-1)
    valid = await store.people.add_token(user.id, "lives", kind="api", name="", role="user", seconds=60)

    assert before - 6 * SECOND_US < (expired.expires_at or 0) < time.time() * SECOND_US + 4 * SECOND_US
    with pytest.raises(TokenExpired):
        await store.people.token("over")
    assert await store.people.token("lives") == (valid, user)


async def test_a_token_of_an_inactive_user_is_not_accepted(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    await store.people.add_token(user.id, "digest", kind="api", name="", role="user")

    await execute(store, sa.update(users).values(active=False))

    assert await store.people.token("digest") is None


async def test_a_token_is_ended_by_one_of_twenty_concurrent_calls(store: AStore, other: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    await store.people.add_token(user.id, "digest", kind="signin", name="", role="user")

    ended = await together([store, other][turn % 2].people.end_token("digest") for turn in range(20))

    assert sum(ended) == 1
    assert await store.people.token("digest") is None
    assert await store.people.end_token("nobody's") is False


# Catalog, versions and readiness


async def test_models_are_put_replaced_and_dropped_by_name(store: AStore) -> None:
    one = Model(name="one", kind="openai", url="http://a")
    two = Model(name="two", kind="subprocess", command=("run", "it"))
    await store.catalog.put_model(two)
    await store.catalog.put_model(Model(name="one", kind="echo"))
    await store.catalog.put_model(one)

    assert await store.catalog.models() == [one, two]
    assert await store.catalog.drop_model("one") is True
    assert await store.catalog.drop_model("one") is False
    assert await store.catalog.models() == [two]


async def test_a_version_grows_with_every_change_of_its_topic(store: AStore, other: AStore) -> None:
    async def grows(*topics: str) -> bool:
        nonlocal versions
        before, versions = versions, await other.versions()
        return {topic for topic in versions if versions[topic] > before[topic]} == {*topics}

    versions = await other.versions()
    topics = {"models", "people", "prices", "limits", "cache", "compositions", "functions", "streams", "policies"}
    assert versions.keys() == topics

    user = await store.people.put_user("ann@example.com", "user")
    assert await grows("people")
    await store.people.add_token(user.id, "digest", kind="api", name="", role="user")
    assert await grows("people")
    await store.people.end_token("digest")
    assert await grows("people")
    await store.people.end_token("digest")
    assert await grows()
    await store.catalog.put_model(Model(name="one", kind="echo"))
    assert await grows("models")
    await store.catalog.drop_model("one")
    assert await grows("models")
    await store.catalog.drop_model("one")
    assert await grows()
    await store.usage.put_price(Price(model="one", valid_from=0, input=1, output=2))
    assert await grows("prices")
    await store.usage.drop_price("one", 0)
    assert await grows("prices")
    await store.usage.drop_price("one", 0)
    await store.streams.put(a_stream("one"))
    assert await grows("streams")
    await store.streams.drop("one")
    assert await grows("streams")
    await store.streams.drop("one")
    assert await grows()
    await store.policies.put(ReviewPolicy(name="one", target="one"))
    assert await grows("policies")
    await store.changed("cache")
    assert await grows("cache")
    await inserted(store)
    assert await grows()


async def test_a_store_is_ready_while_it_is_open(store: AStore) -> None:
    assert await store.is_ready() is True
    await store.close()
    assert await store.is_ready() is False


async def test_a_store_can_be_closed_twice_and_unopened(url: str, store: AStore) -> None:
    await store.close()
    await store.close()

    unopened = store_at(url)
    await unopened.close()


# Announcements of changes


async def hears_of_every_change(recorder: ChangeRecorder, store: AStore) -> None:
    """Change rows of `store` and check what `recorder` hears."""
    job = await inserted(store)
    await recorder.hears(("job", job.id))
    await recorder.hears(("due", job.id))
    recorder.recorded.clear()

    await claim(store)
    await store.jobs.transition(job.id, a_step("succeed"))
    await recorder.hears(("job", job.id))
    recorder.recorded.clear()

    await store.people.put_user("ann@example.com", "user")
    await recorder.hears(("people", ""))
    recorder.recorded.clear()

    await store.catalog.put_model(Model(name="one", kind="echo"))
    await recorder.hears(("models", ""))


async def test_listeners_hear_of_their_own_changes(store: AStore) -> None:
    await hears_of_every_change(ChangeRecorder(store), store)


async def test_listeners_hear_of_the_changes_of_other_processes(store: AStore, url: str) -> None:
    async with listening(url) as (_, recorder):
        await hears_of_every_change(recorder, store)


async def test_a_failing_listener_does_not_affect_other_listeners_or_the_change(store: AStore) -> None:
    def fail(topic: str, name: str) -> None:
        raise RuntimeError(topic + name)

    store.listen(fail)
    recorder = ChangeRecorder(store)

    job = await inserted(store)

    await recorder.hears(("job", job.id))
    assert await store.jobs.count(JobFilter(), at_most=10_000) == 1


async def test_old_ended_jobs_are_purged_with_their_events(store: AStore) -> None:
    # given a job that has ended, and an unfinished one
    ended = await store.jobs.insert_ended(a_job(status="success"), actor="ann", verbs=["submit", "succeed"])
    unfinished = await store.jobs.insert(a_job(idempotency_key="k"), actor="ann")
    # when the retention time has not passed, then nothing is purged
    assert await store.jobs.purge(3600, 100) == 0
    # when it has passed, then the ended job is purged
    assert await store.jobs.purge(-1, 100) == 1
    assert await store.jobs.get(ended.id) is None
    assert await store.jobs.events(ended.id) == []
    assert await store.jobs.get(unfinished.id) == unfinished
