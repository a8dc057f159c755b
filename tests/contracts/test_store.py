"""What every store keeps: the promise in `store.py`, and the laws that depend on it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.test_streams import a_stream
from signoff.core.answer import Usage
from signoff.core.delivery import DeliveryTarget
from signoff.core.job import STATUSES, TERMINAL, TRANSITIONS, Decision, Edit, Guard, Job, JobError, Verdict, replay
from signoff.core.model import Model
from signoff.core.policy import Policy
from signoff.core.price import Price
from signoff.errors import JobNotFound, Overloaded, Stale
from signoff.store import JobFilter, Topic, TransitionRequest
from signoff.stores import jobs, schema
from signoff.work.reviews.desk import verdict_transition
from stores import (
    ANSWER,
    AStore,
    Ear,
    a_job,
    a_step,
    execute,
    held,
    inserted,
    is_refused,
    leased,
    listening,
    rows,
    state,
    store_at,
    together,
)

pytestmark = pytest.mark.anyio

PAST, FUTURE = 1, 2**60
SECOND = 1_000_000
RETRYABLE = JobError(code="model_unreachable", message="Nobody there.", status=502)
FINAL = JobError(code="model_error", message="No.", status=400)
RICH: dict[str, Any] = {
    "response": ANSWER,
    "error": FINAL,
    "usage": Usage(prompt_tokens=1),
    "metadata": b'{"a":[1]}',
    "policy": Policy(review="always"),
    "deliver": (DeliveryTarget(address="http://a.test/", host="a.test", sealed=b"\0\xff"),),
    "draft": Edit(response='"d"'),
    "decision": Decision(verdict="reject", reviewer="ann", reason="No."),
    "cache": "miss",
}
PLAIN = Job.__struct_fields__[11:]
NUMBERS = [name for name in PLAIN if name not in RICH and str(Job.__annotations__[name]).startswith("int")]
TEXTS = [name for name in PLAIN if name not in RICH and str(Job.__annotations__[name]).startswith("str")]


# Coming in


async def test_a_new_job_is_kept_as_it_came_with_the_databases_times(store: AStore) -> None:
    asked = a_job(metadata=b'{"a":[1]}', priority=7, policy=Policy(review="always"), retry_of="old", fingerprint="f")

    made = await store.jobs.insert(asked, actor="user:ann", due_seconds=60)

    assert abs(made.created_at - time.time() * SECOND) < 5 * SECOND
    assert made == msgspec.structs.replace(
        asked, created_at=made.created_at, updated_at=made.created_at, due_at=made.created_at + 60 * SECOND
    )
    assert await store.jobs.get(made.id) == made
    [event] = await store.jobs.events(made.id)
    assert (event.seq, event.verb, event.actor, event.at) == (1, "submit", "user:ann", made.created_at)


async def test_whatever_a_new_job_has_is_kept_and_can_be_replayed(store: AStore) -> None:
    numbers = {name: at for at, name in enumerate(NUMBERS, start=1)}
    texts = {name: f"{name} é \N{SNOWMAN}" for name in TEXTS}
    full = a_job(**numbers, **texts, **RICH)

    bare, made, other = await together(store.jobs.insert(job, actor="test") for job in (a_job(), full, a_job()))

    for job in (bare, made, other):
        assert await store.jobs.get(job.id) == job
    times = {"created_at": made.created_at, "updated_at": made.created_at, "due_at": made.created_at}
    assert made == msgspec.structs.replace(full, lease_until=None, **times)
    kept = msgspec.to_builtins(msgspec.structs.asdict(made), builtin_types=(bytes,)) | {"metadata": {"a": [1]}}
    assert replay(await store.jobs.events(made.id)) == {
        name: value for name, value in kept.items() if value is not None and name not in {"body", "response", "deliver"}
    }


async def test_a_job_can_be_leased_from_its_first_moment(store: AStore) -> None:
    job = await leased(store)

    assert job.lease_until == job.created_at + 60 * SECOND
    assert await store.jobs.claim(actor="worker", lease="other", limit=1, lease_seconds=1) == []


async def test_an_id_is_used_once(store: AStore) -> None:
    job = await inserted(store)

    with pytest.raises(sa.exc.IntegrityError):
        await store.jobs.insert(msgspec.structs.replace(job, target="another"), actor="test")

    assert await store.jobs.get(job.id) == job


async def test_a_job_that_nobody_knows_is_none_and_has_no_events(store: AStore) -> None:
    assert await state(store, "nobody") == (None, [])


async def test_the_same_key_joins_the_standing_job(store: AStore, other: AStore) -> None:
    first = await inserted(store, idempotency_key="k")

    assert await inserted(store, idempotency_key="k") == first
    assert await inserted(other, idempotency_key="k") == first
    assert await store.jobs.count(JobFilter()) == 1


async def test_fifty_inserts_of_one_key_at_once_make_one_job(store: AStore, other: AStore) -> None:
    jobs = await together(inserted([store, other][turn % 2], idempotency_key="k") for turn in range(50))

    assert len({job.id for job in jobs}) == 1
    assert await store.jobs.list(JobFilter()) == jobs[:1]


async def test_two_processes_with_one_key_at_once_make_one_job(store: AStore, other: AStore) -> None:
    for key in map(str, range(30)):
        one, two = await together(inserted(each, idempotency_key=key) for each in (store, other))
        assert one == two
    assert await store.jobs.count(JobFilter()) == 30


async def test_of_inserts_of_many_keys_at_once_each_makes_one_job(store: AStore, other: AStore) -> None:
    keys = [str(number % 5) for number in range(30)]

    jobs = await together(inserted([store, other][number % 2], idempotency_key=key) for number, key in enumerate(keys))

    assert [job.idempotency_key for job in jobs] == keys
    assert len({job.id for job in jobs}) == await store.jobs.count(JobFilter()) == 5


async def test_a_freed_key_is_taken_once(store: AStore, other: AStore) -> None:
    for key in map(str, range(15)):
        failed = await leased(store, idempotency_key=key)
        await store.jobs.transition(failed.id, a_step("fail", changes={"error": RETRYABLE}))
        one, two = await together(inserted(each, idempotency_key=key) for each in (store, other))
        assert one == two
        assert one.id != failed.id


async def test_one_own_id_is_one_job_under_any_concurrency(store: AStore, other: AStore) -> None:
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


async def test_a_key_starts_anew_after_an_error_that_a_retry_can_help(store: AStore) -> None:
    failed = await leased(store, idempotency_key="k")
    failed = await store.jobs.transition(failed.id, a_step("fail", changes={"error": RETRYABLE}))

    again = await inserted(store, idempotency_key="k")

    assert again.id != failed.id
    assert await inserted(store, idempotency_key="k") == again
    assert await store.jobs.get(failed.id) == failed, "terminal is terminal: its row does not change"


@pytest.mark.parametrize("verb", ["succeed", "fail", "hold"])
async def test_a_key_stands_for_what_has_ended_otherwise(store: AStore, verb: str) -> None:
    job = await leased(store, idempotency_key="k")
    job = await store.jobs.transition(job.id, a_step(verb, changes={"error": FINAL}))

    assert await inserted(store, idempotency_key="k") == job


async def test_a_key_lives_for_a_day(store: AStore) -> None:
    old = await inserted(store, idempotency_key="k")
    day = 24 * 3600 * SECOND
    table = schema.jobs

    await execute(store, sa.update(table).values(created_at=old.created_at - day + 60 * SECOND))
    assert (await inserted(store, idempotency_key="k")).id == old.id

    await execute(store, sa.update(table).values(created_at=old.created_at - day - 1))
    assert (await inserted(store, idempotency_key="k")).id != old.id


async def test_a_job_that_ran_its_course_is_one_row_and_one_event(store: AStore) -> None:
    ended = a_job(status="success", lane="now", response=ANSWER, usage=Usage(total_tokens=3), attempt=2)

    written = await store.jobs.insert_ended(ended, actor="user:ann", verbs=["submit", "claim", "succeed"])
    job = await written

    assert job == await store.jobs.get(ended.id)
    assert job == msgspec.structs.replace(
        ended, created_at=job.created_at, updated_at=job.created_at, due_at=job.created_at
    )
    [event] = await store.jobs.events(ended.id)
    assert (event.verb, event.data["moves"]) == ("succeed", ["submit", "claim", "succeed"])
    assert follows(job, replay([event]))


async def test_a_hit_has_ended_when_it_is_written_and_its_end_is_told(store: AStore) -> None:
    hook = DeliveryTarget(address="https://example.com/", host="example.com")
    made = {"status": "success", "response": ANSWER, "cache": "hit", "cache_key": "v-k", "deliver": (hook,)}
    hit = a_job(client_id="mine", idempotency_key="k", **made)

    job = await store.jobs.insert(hit, actor="user:ann", verb="hit")

    assert job == await store.jobs.get(hit.id)
    assert (job.status, job.response, job.cache, job.cache_key) == ("success", ANSWER, "hit", "v-k")
    [event] = await store.jobs.events(hit.id)
    assert (event.verb, event.actor) == ("hit", "user:ann")
    assert follows(job, replay([event]))
    assert [one.job_id for one in await store.deliveries.of_job(hit.id)] == [hit.id]
    assert await store.jobs.claim(actor="w", lease="l", limit=9, lease_seconds=9) == []
    # and under its names it stands like any other job
    for name in ({"client_id": "mine"}, {"idempotency_key": "k"}):
        assert await store.jobs.insert(a_job(**made, **name), actor="user:ann", verb="hit") == job
        assert (await inserted(store, **name)).id == job.id


async def test_what_was_refused_leaves_room_for_others(store: AStore) -> None:
    job = await inserted(store)
    again = msgspec.structs.replace(job, status="success")

    for _ in range(300):  # more than may wait behind their answers
        with pytest.raises(sa.exc.IntegrityError):
            await (await store.jobs.insert_ended(again, actor="test", verbs=["submit"]))

    await store.close()
    for _ in range(300):
        with pytest.raises(Overloaded):
            await store.jobs.insert_ended(a_job(), actor="test", verbs=["submit"])


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_the_row_of_an_answered_call_waits_while_the_database_is_away(
    store: AStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that takes nothing, as one whose disk is full
    writer = store._database._writer
    run, refused = writer._run_group, asyncio.Event()

    async def refuse(group: object) -> list[Any]:
        refused.set()
        raise Overloaded("The disk is full.")

    writer._run_group = refuse
    written = await store.jobs.insert_ended(a_job(status="success"), actor="test", verbs=["submit", "succeed"])
    await refused.wait()
    with pytest.raises(Overloaded):
        await inserted(store)
    assert not written.done()
    # when it takes something again, then the row is there
    writer._run_group = run
    async with asyncio.timeout(10):
        job = await written
    assert await store.jobs.get(job.id) == job


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_who_finds_no_room_behind_their_answer_is_told_so(store: AStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "WRITE_TIMEOUT_SECONDS", 0.05)
    store.jobs._queue_slots = asyncio.Semaphore(0)
    with pytest.raises(Overloaded):
        await store.jobs.insert_ended(a_job(status="success"), actor="test", verbs=["submit", "succeed"])


# Moves: what each guard looks at, in ways in which it holds, and in ways in which it does not

HOLDS: dict[Guard, list[dict[str, Any]]] = {
    Guard.DUE: [{"lease": None}],
    Guard.LEASE: [{"lease": "mine", "lease_seconds": 60}, {"lease": "mine", "lease_seconds": -1}],
    Guard.LAPSED: [{"lease": "mine", "lease_seconds": -1}],
    Guard.ROUND: [{"round": 1}],
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
    Guard.UNOPENED: [{"review_lease": "bob", "review_lease_until": FUTURE}],
    Guard.UNDECIDED: [{"release_at": FUTURE}, {"release_at": PAST}],
    Guard.DECIDED: [{"release_at": None}],
    Guard.UNRELEASED: [{"release_at": PAST}],
    Guard.RELEASED: [{"release_at": FUTURE}],
    Guard.OVERDUE: [{"review_deadline": FUTURE}, {"review_deadline": None}],
    Guard.QUIET: [{"settled": 1}],
    Guard.PARKED: [{"parked_at": None}],
}
VERBS = [verb for verb, move in TRANSITIONS.items() if move.sources]
every_verb = pytest.mark.parametrize("verb", VERBS)


def right(verb: str) -> Iterator[dict[str, Any]]:
    """Jobs that are in every respect but their status where `verb` may begin."""
    guards = TRANSITIONS[verb].guards
    plain = {key: value for guard in guards for key, value in HOLDS[guard][0].items()}
    yield plain
    for guard in guards:
        yield from (plain | way for way in HOLDS[guard][1:])


def wrong(verb: str) -> Iterator[dict[str, Any]]:
    """Jobs of which one guard of `verb` does not hold."""
    plain = next(right(verb))
    for guard in TRANSITIONS[verb].guards:
        yield from (plain | way for way in FAILS[guard])


def test_every_guard_is_tested() -> None:
    assert set(HOLDS) == set(FAILS) == set(Guard)


def test_only_what_comes_in_has_no_source() -> None:
    assert set(TRANSITIONS) - set(VERBS) == {"submit", "hit", "refuse"}


@every_verb
async def test_a_move_is_made_where_its_guards_hold(store: AStore, verb: str) -> None:
    move = TRANSITIONS[verb]

    async def check(source: str, target: str, way: dict[str, Any]) -> None:
        before = await inserted(store, status=source, attempt=3, draft=Edit(response='"d"'), **way)
        job = await store.jobs.transition(
            before.id, a_step(verb, to=target, changes={"priority": 9}, note={"why": "so"})
        )

        [_, event] = await store.jobs.events(job.id)
        assert job == await store.jobs.get(job.id)
        assert (job.status, job.priority, job.seq) == (target, 9, before.seq + 1)
        assert [getattr(job, column) for column in move.clears] == [None] * len(move.clears)
        assert {column: getattr(job, column) - getattr(before, column) for column in move.adds} == move.adds
        assert (event.seq, event.verb, event.actor, event.at) == (job.seq, verb, "user:ann", job.updated_at)
        assert {"status": target, "priority": 9, "why": "so"}.items() <= event.data.items()
        touched = {"status", "seq", "updated_at", "priority", *move.clears, *move.adds}
        for column in set(Job.__struct_fields__) - touched:
            assert getattr(job, column) == getattr(before, column)

    await together(
        check(source, target, way) for source in move.sources for target in move.targets for way in right(verb)
    )


@every_verb
async def test_a_move_from_any_other_status_is_stale_and_changes_nothing(store: AStore, verb: str) -> None:
    async def check(status: str, way: dict[str, Any]) -> None:
        job = await inserted(store, status=status, **way)
        assert await is_refused(store, job, a_step(verb)), (status, way)

    await together(
        check(status, way) for status in set(STATUSES) - set(TRANSITIONS[verb].sources) for way in right(verb)
    )


@every_verb
async def test_a_move_whose_guard_does_not_hold_is_stale_and_changes_nothing(store: AStore, verb: str) -> None:
    async def check(source: str, way: dict[str, Any]) -> None:
        job = await inserted(store, status=source, **way)
        assert await is_refused(store, job, a_step(verb)), way

    await together(check(source, way) for source in TRANSITIONS[verb].sources for way in wrong(verb))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if {Guard.LEASE, Guard.ROUND} & {*TRANSITIONS[verb].guards}])
async def test_who_holds_no_lease_and_saw_no_round_cannot_settle_or_decide(store: AStore, verb: str) -> None:
    job = await inserted(store, status=TRANSITIONS[verb].sources[0], **next(right(verb)) | {"lease": None})

    assert await is_refused(store, job, a_step(verb, lease=None, round=None))


def test_nothing_leads_out_of_an_end() -> None:
    assert [verb for verb, move in TRANSITIONS.items() if TERMINAL & {*move.sources}] == []


async def test_a_move_of_a_job_that_nobody_knows_says_so(store: AStore) -> None:
    with pytest.raises(JobNotFound):
        await store.jobs.transition("nobody", a_step("cancel"))


async def test_a_stale_worker_cannot_settle(store: AStore) -> None:
    job = await inserted(store, lease="mine", lease_seconds=-1)
    await store.jobs.transition(job.id, a_step("lapse", to="bot", after_seconds={"due_at": 0}))
    [taken] = await store.jobs.claim(actor="worker:2", lease="theirs", limit=1, lease_seconds=60)

    assert await is_refused(store, taken, a_step("succeed", changes={"response": b'"late"'}))

    settled = await store.jobs.transition(job.id, a_step("succeed", lease="theirs", changes={"response": ANSWER}))
    assert (settled.status, settled.response) == ("success", ANSWER)


async def test_a_sweeper_who_comes_late_gives_no_attempt_more(store: AStore) -> None:
    job = await inserted(store, lease="mine", lease_seconds=-1, attempt=1, max_attempts=2)
    [seen] = await store.jobs.lapsed(1)
    back = a_step("lapse", to="bot", lease=seen.lease, after_seconds={"due_at": 0})

    await store.jobs.transition(job.id, back)
    [last] = await store.jobs.claim(actor="worker:2", lease="theirs", limit=1, lease_seconds=-1)

    assert (last.attempt, last.max_attempts) == (2, 2)
    assert await is_refused(store, last, back)
    assert await store.jobs.lapsed(1) == [last]


async def test_a_sweeper_who_comes_late_brings_no_old_verdict_about(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, decided("ann", "redo"))
    [seen] = await store.jobs.released(1)
    assert seen.decision is not None
    again = verdict_transition(seen, seen.decision, "sweeper")

    await store.jobs.transition(job.id, again)
    await store.jobs.claim(actor="worker", lease="mine", limit=1, lease_seconds=60)
    await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))
    second = await store.jobs.transition(job.id, msgspec.structs.replace(decided("bob", "reject"), round=2))

    assert await is_refused(store, second, again)
    assert await store.jobs.released(1) == [second]


async def test_of_many_settles_at_once_one_is_made(store: AStore, other: AStore) -> None:
    job = await leased(store)

    async def settle(turn: int) -> bool:
        step = a_step("succeed", changes={"response": b"%d" % turn})
        try:
            return bool(await [store, other][turn % 2].jobs.transition(job.id, step))
        except Stale:
            return False

    assert sum(await together(settle(turn) for turn in range(20))) == 1
    assert len(await store.jobs.events(job.id)) == 2


async def test_times_are_counted_from_the_databases_now(store: AStore) -> None:
    job = await leased(store)

    job = await store.jobs.transition(job.id, a_step("retry", after_seconds={"due_at": 1.5}))

    assert job.due_at == job.updated_at + 1.5 * SECOND


# Moves of two steps


async def test_two_steps_are_one_move(store: AStore) -> None:
    job = await held(store)

    job = await store.jobs.transition(job.id, decided("ann", "approve"), a_step("approve"))

    assert (job.status, job.seq) == ("success", 4)
    assert [event.verb for event in await store.jobs.events(job.id)] == ["submit", "hold", "decide", "approve"]


async def test_when_the_second_step_is_stale_the_first_is_undone(store: AStore) -> None:
    jobs = await together(held(store) for _ in range(10))

    async def check(turn: int, job: Job) -> None:
        if turn % 2:  # these are in the same group, and must not notice
            await store.jobs.transition(job.id, decided("ann", "approve"), a_step("approve"))
        else:
            assert await is_refused(store, job, decided("ann", "approve", seconds=60), a_step("approve"))

    await together(check(turn, job) for turn, job in enumerate(jobs))

    done = {job.id for turn, job in enumerate(jobs) if turn % 2}
    assert {row["job_id"] for row in await rows(store, sa.select(schema.decisions))} == done
    assert {row["job_id"] for row in await rows(store, sa.select(schema.votes))} == done


# Decisions


def decided(reviewer: str, verdict: Verdict, seconds: float = 0) -> TransitionRequest:
    """What a reviewer does with a job in its first round."""
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
async def test_of_two_reviewers_at_once_one_wins_and_the_other_learns_who(
    store: AStore, other: AStore, verdict: Verdict, seconds: float
) -> None:
    job = await held(store)

    async def decide(store: AStore, reviewer: str) -> Job | Stale:
        effect = [] if seconds else [a_step(verdict)]
        try:
            return await store.jobs.transition(job.id, decided(reviewer, verdict, seconds), *effect)
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


async def test_who_comes_late_learns_who_has_it_open(store: AStore) -> None:
    job = await held(store)
    changes, after = {"review_lease": "bob"}, {"review_lease_until": 60}
    await store.jobs.transition(job.id, a_step("open", reviewer="bob", changes=changes, after_seconds=after))

    with pytest.raises(Stale, match="bob has it open"):
        await store.jobs.transition(job.id, decided("ann", "approve"))


async def test_a_withdrawn_verdict_stays_on_record_and_the_next_round_has_its_own(store: AStore) -> None:
    job = await held(store)
    await store.jobs.transition(job.id, decided("ann", "reject", seconds=60))
    await store.jobs.transition(job.id, a_step("undo"))

    assert await is_refused(store, job, decided("bob", "approve"))
    second = msgspec.structs.replace(decided("bob", "approve"), round=2)
    job = await store.jobs.transition(job.id, second, a_step("approve", round=2))

    made = await rows(store, sa.select(schema.decisions).order_by(schema.decisions.c.round))
    assert [(row["round"], row["decision"].verdict) for row in made] == [(1, "reject"), (2, "approve")]


# Leases


async def claim(store: AStore, limit: int = 100, lease: str = "mine", seconds: float = 60) -> list[Job]:
    return await store.jobs.claim(actor="worker", lease=lease, limit=limit, lease_seconds=seconds)


async def test_jobs_are_claimed_by_priority_then_age(store: AStore) -> None:
    made = [await inserted(store, priority=priority) for priority in (5, 1, 9, 5, 9)]
    first, low, high, second, higher = (job.id for job in made)

    claimed = [job.id for limit in (1, 2, 100) for job in await claim(store, limit)]

    assert claimed == [high, higher, first, second, low]


async def test_a_claim_leases_counts_the_attempt_and_is_an_event(store: AStore) -> None:
    made = await inserted(store)

    [job] = await claim(store)

    assert (job.lease, job.lease_until, job.attempt) == ("mine", job.updated_at + 60 * SECOND, 1)
    assert job == await store.jobs.get(made.id)
    [_, event] = await store.jobs.events(made.id)
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


async def test_twenty_claims_at_once_never_give_one_job_twice(store: AStore, other: AStore) -> None:
    made = await together(inserted(store) for _ in range(50))

    claims = await together(claim([store, other][turn % 2], limit=3, lease=f"lease-{turn}") for turn in range(20))

    claimed = [job.id for jobs in claims for job in jobs]
    assert max(map(len, claims)) <= 3
    assert len(claimed) == len({*claimed})
    assert sorted(claimed + [job.id for job in await claim(store)]) == [job.id for job in made]


async def test_two_processes_that_claim_at_once_never_get_the_same_job(store: AStore, other: AStore) -> None:
    made = await together(inserted(store) for _ in range(60))

    for _ in range(15):
        one, two = await together(claim(each, limit=3, lease=lease) for each, lease in ((store, "one"), (other, "two")))
        assert {job.id for job in one} & {job.id for job in two} == set()

    assert [job.attempt for job in await store.jobs.list(JobFilter(limit=100))] == [1] * len(made)


async def test_renew_extends_standing_leases_and_no_others(store: AStore) -> None:
    mine, theirs, free = await leased(store), await leased(store), await inserted(store)
    lapsed = await inserted(store, lease="mine", lease_seconds=-1)
    asked = {mine.id: "mine", theirs.id: "theirs", free.id: "mine", lapsed.id: "mine", "nobody": "mine"}

    standing = await store.jobs.renew(asked, 1000)

    assert standing == {mine.id, lapsed.id}
    later = await store.jobs.get(mine.id)
    assert later is not None
    assert (later.lease_until or 0) >= (mine.lease_until or 0) + 900 * SECOND
    assert later.seq == mine.seq
    assert await store.jobs.get(theirs.id) == theirs
    assert await store.jobs.get(free.id) == free
    assert await store.jobs.lapsed(10) == []


async def test_renew_takes_no_lease_for_another(store: AStore) -> None:
    one = await inserted(store, lease="one", lease_seconds=60)
    two = await inserted(store, lease="two", lease_seconds=60)

    assert await store.jobs.renew({one.id: "two", two.id: "one"}, 1000) == set()
    assert await store.jobs.list(JobFilter()) == [one, two]


async def test_renewing_nothing_and_very_much_works(store: AStore) -> None:
    job = await leased(store)

    assert await store.jobs.renew({}, 60) == set()
    assert await store.jobs.renew({f"none-{n}": "mine" for n in range(3000)} | {job.id: "mine"}, 60) == {job.id}


async def test_the_lists_of_what_time_brings_about(store: AStore) -> None:
    lapsed = [await inserted(store, lease="mine", lease_seconds=-1) for _ in range(3)]
    released = [await inserted(store, status="human", release_at=PAST) for _ in range(3)]
    overdue = [await inserted(store, status="human", review_deadline=PAST) for _ in range(3)]
    await inserted(store)
    await leased(store)
    await inserted(store, status="human", release_at=FUTURE, review_deadline=PAST)
    await inserted(store, status="human", review_deadline=FUTURE)
    await inserted(store, status="success", release_at=PAST, review_deadline=PAST, lease="mine", lease_seconds=-1)

    for made, look in (
        (lapsed, store.jobs.lapsed),
        (released, store.jobs.released),
        (overdue, store.jobs.overdue),
    ):
        assert sorted(await look(10), key=lambda job: job.id) == made
        assert len(await look(2)) == 2


# Law 7: replaying a job's events gives its row

STEPS: dict[str, list[dict[str, Any]]] = {
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
    "leave": [{}],
    "draft": [{"changes": {"draft": Edit(payload='{"a":1}')}}, {"changes": {"draft": Edit(response='"b"')}}],
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
    """Whether `job` is what its events say; the body stands in the row alone."""
    row = msgspec.to_builtins(job) | {"metadata": msgspec.json.decode(job.metadata)}
    row["response"] = None if job.response is None else msgspec.json.decode(job.response)
    return {name: row[name] for name in row.keys() & replayed.keys()} == {
        name: value for name, value in replayed.items() if name in row
    }


MODEL: dict[Guard, Callable[[Job, float], bool]] = {
    Guard.DUE: lambda job, now: job.lease is None and job.parked_at is None and job.due_at <= now,
    Guard.LEASE: lambda job, now: job.lease == "mine",
    Guard.LAPSED: lambda job, now: job.lease is not None and (job.lease_until or 0) < now,
    Guard.ROUND: lambda job, now: True,
    Guard.UNOPENED: lambda job, now: job.review_lease != "bob" or (job.review_lease_until or 0) < now,
    Guard.UNDECIDED: lambda job, now: job.release_at is None,
    Guard.DECIDED: lambda job, now: job.release_at is not None,
    Guard.UNRELEASED: lambda job, now: job.release_at is not None and job.release_at > now,
    Guard.RELEASED: lambda job, now: job.release_at is not None and job.release_at <= now,
    Guard.OVERDUE: lambda job, now: job.review_deadline is not None and job.review_deadline <= now,
    Guard.QUIET: lambda job, now: True,  # it has no steps
    Guard.PARKED: lambda job, now: job.parked_at is not None,
}


def may(job: Job, verb: str) -> bool:
    """Whether Ann, who sees `job` as it is, may move it so. Nothing in a walk is due within half a minute."""
    now = (time.time() + 30) * SECOND
    return job.status in TRANSITIONS[verb].sources and all(MODEL[guard](job, now) for guard in TRANSITIONS[verb].guards)


def test_every_verb_is_walked() -> None:
    assert set(STEPS) == set(VERBS)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
async def test_replaying_a_jobs_events_gives_its_row(store: AStore, seed: int) -> None:
    await together(walk(store, Random(seed + number)) for number in range(40))


async def walk(store: AStore, random_float: Random) -> None:
    """Moves a new job about, and one time in six tries to move it as it may not be moved. Few walks end early."""
    job = await inserted(store, metadata=b'{"m":1}', priority=random_float.randrange(10))

    for _ in range(random_float.randrange(30)):
        allowed = [verb for verb in VERBS if may(job, verb)]
        goes_on = [verb for verb in allowed if not {*TRANSITIONS[verb].targets} <= TERMINAL]
        not_cancelled = [verb for verb in allowed if verb != "cancel"]
        verb = random_float.choice(
            random_float.choice([goes_on, goes_on, goes_on, goes_on, not_cancelled, VERBS]) or VERBS
        )
        step = a_step(verb, round=job.round, **random_float.choice(STEPS[verb]))
        assert await is_refused(store, job, step) == (verb not in allowed)
        job = await store.jobs.get(job.id)
        assert job is not None

    events = await store.jobs.events(job.id)
    assert [event.seq for event in events] == list(range(1, job.seq + 1))
    assert job.status in TRANSITIONS[events[-1].verb].targets
    assert follows(job, replay(events))
    assert replay(events).keys() >= {"status", "seq", "updated_at", "created_at", "priority", "metadata"}


# Looking


async def test_jobs_are_listed_in_pages_from_either_end(store: AStore) -> None:
    made = [await inserted(store) for _ in range(5)]

    assert await store.jobs.list(JobFilter()) == made
    assert await store.jobs.list(JobFilter(limit=2)) == made[:2]
    assert await store.jobs.list(JobFilter(limit=2, after_id=made[1].id)) == made[2:4]
    assert await store.jobs.list(JobFilter(limit=2, offset=3)) == made[3:]
    assert await store.jobs.list(JobFilter(limit=2, newest_first=True)) == made[:2:-1]
    assert await store.jobs.list(JobFilter(after_id=made[1].id, newest_first=True)) == made[:1]
    assert await store.jobs.list(JobFilter(limit=0)) == []


async def test_jobs_are_filtered_and_counted_by_owner_and_status(store: AStore) -> None:
    mine, held_one, theirs = await inserted(store), await held(store), await inserted(store, user_id=2)
    alike, made = await inserted(store, fingerprint="print"), await inserted(store, upstream_object_id="resp_1")

    for which, found in (
        (JobFilter(), [mine, held_one, theirs, alike, made]),
        (JobFilter(user_id=1), [mine, held_one, alike, made]),
        (JobFilter(status="bot"), [mine, theirs, alike, made]),
        (JobFilter(user_id=1, status="human"), [held_one]),
        (JobFilter(user_id=3), []),
        (JobFilter(user_id=1, fingerprint="print"), [alike]),
        (JobFilter(status="human", fingerprint="print"), []),
        (JobFilter(upstream_object_id="resp_1"), [made]),
        (JobFilter(upstream_object_id="resp_2"), []),
    ):
        assert await store.jobs.list(which) == found
        assert await store.jobs.count(which) == len(found)


async def test_statuses_are_those_of_the_jobs_that_exist(store: AStore) -> None:
    one, two = await inserted(store), await held(store)

    asked = [one.id, two.id, *(f"none-{number}" for number in range(3000))]

    assert await store.jobs.statuses(asked) == {one.id: ("bot", 1), two.id: ("human", 2)}
    assert await store.jobs.statuses([]) == {}


# People


async def test_a_user_is_made_once_and_changed_by_name(store: AStore) -> None:
    made = await store.people.put_user("Ann@Example.com", "user", "hash")
    changed = await store.people.put_user("ann@example.COM", "admin")

    assert (made.email, made.role, made.password_hash, made.active) == ("ann@example.com", "user", "hash", True)
    assert changed == msgspec.structs.replace(made, role="admin")
    assert await store.people.user("ANN@example.com") == changed
    assert await store.people.user("bob@example.com") is None
    assert await store.people.users() == [changed]


async def test_twenty_who_make_one_user_at_once_make_one(store: AStore, other: AStore) -> None:
    users = await together(
        [store, other][turn % 2].people.put_user("ann@example.com", "reviewer") for turn in range(20)
    )

    assert await store.people.users() == users[:1]
    assert len({user.id for user in users}) == 1


async def test_a_token_stands_for_its_user(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "admin")

    made = await store.people.add_token(user.id, "digest", kind="api", name="laptop", role="user")

    assert (made.digest, made.user_id, made.kind, made.name, made.role) == ("digest", user.id, "api", "laptop", "user")
    assert (made.active, made.expires_at) == (True, None)
    assert await store.people.token("digest") == (made, user)
    assert await store.people.token("another") is None


async def test_a_token_expires_by_the_databases_clock(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    over = await store.people.add_token(user.id, "over", kind="api", name="", role="user", seconds=-1)
    lives = await store.people.add_token(user.id, "lives", kind="api", name="", role="user", seconds=60)

    assert abs((over.expires_at or 0) - (time.time() - 1) * SECOND) < 5 * SECOND
    assert await store.people.token("over") is None
    assert await store.people.token("lives") == (lives, user)


async def test_a_token_of_a_user_who_is_switched_off_is_nobodys(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    await store.people.add_token(user.id, "digest", kind="api", name="", role="user")

    await execute(store, sa.update(schema.users).values(active=False))

    assert await store.people.token("digest") is None


async def test_a_token_ends_once_among_twenty_who_end_it(store: AStore, other: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user")
    await store.people.add_token(user.id, "digest", kind="signin", name="", role="user")

    ended = await together([store, other][turn % 2].people.end_token("digest") for turn in range(20))

    assert sum(ended) == 1
    assert await store.people.token("digest") is None
    assert await store.people.end_token("nobody's") is False


# Catalog, versions, and whether it answers


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


async def test_versions_grow_with_every_change_of_what_they_count(store: AStore, other: AStore) -> None:
    async def grows(*topics: str) -> bool:
        nonlocal seen
        before, seen = seen, await other.versions()
        return {topic for topic in seen if seen[topic] > before[topic]} == {*topics}

    seen = await other.versions()
    assert seen.keys() == {"models", "people", "prices", "limits", "cache", "compositions", "functions", "streams"}

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
    await store.changed("cache")
    assert await grows("cache")
    await inserted(store)
    assert await grows()


async def test_a_store_is_ready_while_it_is_open(store: AStore) -> None:
    assert await store.ready() is True
    await store.close()
    assert await store.ready() is False


async def test_closing_twice_or_unopened_is_no_error(url: str, store: AStore) -> None:
    await store.close()
    await store.close()

    unopened = store_at(url)
    await unopened.close()


# News


async def hears_of_every_change(ear: Ear, store: AStore, *something: tuple[Topic, str]) -> None:
    """Changes things in `store`; `something` is as good as the news itself."""
    job = await inserted(store)
    await ear.hears(("job", job.id), *something)
    await ear.hears(("due", job.id), *something)
    ear.heard.clear()

    await claim(store)
    await store.jobs.transition(job.id, a_step("succeed"))
    await ear.hears(("job", job.id), *something)
    ear.heard.clear()

    await store.people.put_user("ann@example.com", "user")
    await ear.hears(("people", ""), *something)
    ear.heard.clear()

    await store.catalog.put_model(Model(name="one", kind="echo"))
    await ear.hears(("models", ""), *something)


async def test_listeners_hear_of_their_own_changes(store: AStore) -> None:
    await hears_of_every_change(Ear(store), store)


async def test_listeners_hear_of_what_others_change(store: AStore, url: str) -> None:
    something: list[tuple[Topic, str]] = [("any", "")] if url.startswith("sqlite") else []

    async with listening(url) as (_, ear):
        await hears_of_every_change(ear, store, *something)


async def test_a_listener_that_fails_spoils_nothing(store: AStore) -> None:
    def fail(topic: str, name: str) -> None:
        raise RuntimeError(topic + name)

    store.listen(fail)
    ear = Ear(store)

    job = await inserted(store)

    await ear.hears(("job", job.id))
    assert await store.jobs.count(JobFilter()) == 1


async def test_jobs_that_ended_long_ago_are_forgotten_with_all_that_is_kept_of_them(store: AStore) -> None:
    # given a job that has ended, and one that goes on
    ended = await (await store.jobs.insert_ended(a_job(status="success"), actor="ann", verbs=["submit", "succeed"]))
    going_on = await store.jobs.insert(a_job(idempotency_key="k"), actor="ann")
    # when the time has not come, nothing is forgotten
    assert await store.jobs.purge(3600, 100) == 0
    # and when it has come, the ended one is
    assert await store.jobs.purge(-1, 100) == 1
    assert await store.jobs.get(ended.id) is None
    assert await store.jobs.events(ended.id) == []
    assert await store.jobs.get(going_on.id) == going_on
