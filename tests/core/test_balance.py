"""Tests of load balancing: the choice of endpoints, cooldowns, and the slots of a pool under any order of events."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.api_paths import CHAT
from signoff.core.balance import (
    LOAD_FACTOR,
    SOFT_FAILURES,
    bounded_load,
    choose_by_hash,
    cooldown_seconds,
    endpoint_key,
    is_refusal,
    least_loaded,
    may_succeed_elsewhere,
    prefix_key,
)
from signoff.core.job import Job
from signoff.core.model import (
    EndpointConfig,
    Model,
    Timeouts,
    endpoints_of,
    model_fault,
    needs_no_pool,
    registered_name,
)
from signoff.errors import (
    ModelAnswered,
    ModelBusy,
    ModelCrashed,
    ModelDown,
    ModelFailed,
    ModelTimedOut,
    ModelUnreachable,
    SignoffError,
)
from signoff.runtime.attempt import Attempt
from signoff.runtime.pools import EndpointPool, EndpointPools, Slot

pytestmark = pytest.mark.anyio
REFUSED = ModelUnreachable("Connection refused")
LATER = 1e9
URLS = [f"http://h{number}" for number in range(8)]


def many(count: int = 2, **more: Any) -> Model:
    endpoints = tuple(EndpointConfig(url=url) for url in URLS[:count])
    return Model(**({"name": "m", "kind": "openai", "endpoints": endpoints} | more))


# The choice of an endpoint


@given(st.lists(st.none() | st.integers(0, 5), max_size=8), st.integers(0, 20))
def test_the_least_loaded_available_endpoint_is_chosen(loads: list[int | None], turn: int) -> None:
    free = [load for load in loads if load is not None]
    index = least_loaded(loads, turn)
    assert (index is None) is (not free)
    assert index is None or loads[index] == min(free)


def test_equally_loaded_endpoints_take_turns() -> None:
    turn, counts = 0, Counter[int]()
    for _ in range(300):
        index = least_loaded([0, 0, 0], turn)
        assert index is not None
        counts[index] += 1
        turn = index + 1
    assert counts == {0: 100, 1: 100, 2: 100}


def assignments(count: int, without: int | None = None) -> list[int]:
    """Return the index of the endpoint that each of 2000 conversations is assigned to."""
    names = [endpoint_key(url) for url in URLS[:count]]
    loads = [None if index == without else 0 for index in range(count)]
    indices = [choose_by_hash(prefix_key("m", b"%d" % number), names, loads, 10**6) for number in range(2000)]
    assert None not in indices
    return [index for index in indices if index is not None]


def test_conversations_are_distributed_evenly() -> None:
    shares = Counter(assignments(5))
    assert set(shares) == set(range(5))
    assert all(300 < share < 500 for share in shares.values())


def test_when_an_endpoint_is_removed_only_its_conversations_move() -> None:
    before, after = assignments(5), assignments(5, without=2)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {2}
    assert len(moved) == before.count(2)
    assert {new for _, new in moved} == {0, 1, 3, 4}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=200), st.integers(1, 6))
def test_no_endpoint_exceeds_its_bounded_load(keys: list[int], count: int) -> None:
    names, loads = [endpoint_key(url) for url in URLS[:count]], [0] * count
    for total, key in enumerate(keys):
        index = choose_by_hash(key, names, loads, bounded_load(total, count))
        assert index is not None
        loads[index] += 1
        assert loads[index] <= -(-LOAD_FACTOR * (total + 1) // count)


def chat(*contents: str, **more: Any) -> bytes:
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return json.dumps({"model": "m", "messages": messages} | more).encode()


def test_all_turns_of_a_conversation_have_one_key() -> None:
    key = prefix_key("m", chat("Be brief.", "Hello?"))
    assert prefix_key("m", chat("Be brief.", "Hello?", "Hi.", "And?", temperature=1)) == key
    assert prefix_key("m", chat("Be long.", "Hello?")) != key, "the system's words are part of it"
    assert prefix_key("m", chat("Be brief.", "Hello!")) != key
    assert prefix_key("other", chat("Be brief.", "Hello?")) != key, "each adapter has a cache of its own"
    long = "x" * 5000
    assert prefix_key("m", chat(long + "1", "a")) != prefix_key("m", chat(long + "2", "a"))
    # the `input` of a response is a text in the first turn and a list afterwards
    first = json.dumps({"instructions": "Be brief.", "input": "Hello?"}).encode()
    items = [{"role": "user", "content": "Hello?"}, {"type": "message", "role": "assistant", "content": []}]
    later = json.dumps({"instructions": "Be brief.", "input": items}).encode()
    assert prefix_key("m", first) == prefix_key("m", later)
    # and a `prompt_cache_key` of the caller overrides it
    keys = [prefix_key("m", chat("", text, prompt_cache_key="mine")) for text in ("a", "b")]
    assert keys[0] == keys[1]


@given(st.binary(max_size=50) | st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(
    st.sampled_from(["messages", "input", "prompt", "tools", "role", "content"]), inner | st.lists(inner)
)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_every_body_has_a_key(body: bytes) -> None:
    assert 0 <= prefix_key("m", body) < 2**64
    assert prefix_key("m", body) == prefix_key("m", body)


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (ModelAnswered(400, ""), False),
        (ModelAnswered(409, ""), False),
        (ModelAnswered(422, ""), False),
        (ModelAnswered(401, ""), True),
        (ModelAnswered(402, ""), True),
        (ModelAnswered(403, ""), True),
        (ModelAnswered(404, ""), True),
        (ModelAnswered(405, ""), True),
        (ModelAnswered(410, ""), True),
        (ModelAnswered(421, ""), True),
        (ModelAnswered(451, ""), True),
        (ModelAnswered(425, ""), True),
        (ModelAnswered(501, ""), True),
        (ModelAnswered(408, ""), True),
        (ModelAnswered(429, ""), True),
        (ModelAnswered(500, ""), True),
        (ModelAnswered(529, ""), True),
        (ModelCrashed(""), False),
        (ModelUnreachable(""), True),
        (ModelTimedOut(""), True),
        (ModelBusy(""), True),
        (ModelDown(""), True),
    ],
)
def test_only_errors_of_the_endpoint_are_retried_elsewhere(error: SignoffError, helps: bool) -> None:
    assert may_succeed_elsewhere(error) is helps


@pytest.mark.parametrize("code", ["model_not_found", "model_decommissioned", "deploymentnotfound"])
def test_an_endpoint_that_lacks_the_model_refuses_whatever_its_status(code: str) -> None:
    error = ModelAnswered(400, "")
    error.codes = frozenset({code})
    assert may_succeed_elsewhere(error)
    assert is_refusal(error)


def test_cooldowns_grow_up_to_a_limit_and_respect_retry_after() -> None:
    waits = [cooldown_seconds(REFUSED, failures) for failures in range(1, 12)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.5, 30)
    assert cooldown_seconds(ModelAnswered(429, "", retry_after_seconds=7), 1) == 7
    assert cooldown_seconds(ModelAnswered(429, "", retry_after_seconds=1e9), 1) == 300
    assert [cooldown_seconds(ModelAnswered(status, ""), 1) for status in (401, 402, 403, 404, 500)] == [*[30] * 4, 0.5]


# Validation of models


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://h"},
        {"endpoints": (EndpointConfig(url="ftp://h"),)},
        {"endpoints": (EndpointConfig(url="http://h"), EndpointConfig(url="http://h"))},
        {"endpoints": tuple(EndpointConfig(url=f"http://h{number}") for number in range(65))},
        {"endpoints": ()},
        {"endpoints": (EndpointConfig(url="http://h", max_parallel=0),)},
        {"kind": "echo"},
        {"replicas": 2},
        {"max_parallel": 0},
        {"max_waiting": -1},
        {"queue_seconds": 0},
        {"fallbacks": ("m",)},
        {"fallbacks": ("",)},
        {"fallbacks": tuple("abcdefghi")},
    ],
)
def test_a_model_with_invalid_balancing_is_refused(wrong: dict[str, Any]) -> None:
    assert model_fault(many()) is None
    assert model_fault(many(**wrong)) is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "a*b"}, "`name` must be 1 to 255 printable characters without outer blanks; * only at its end."),
        ({"attempts": 0}, "`attempts` must be 1 to 1000000 (got 0)."),
        ({"queue_seconds": 0}, "`queue_seconds` must be more than 0 and finite (got 0)."),
        ({"timeouts": Timeouts(total_seconds=-1)}, "`timeouts.total_seconds` must be more than 0 and finite (got -1)."),
        (
            {"replicas": 2},
            "`replicas` is for models of the kind subprocess; remove it (this one is of the kind openai).",
        ),
        ({"url": "http://h"}, "`url` and `endpoints` exclude each other; remove one of them."),
        ({"endpoints": ()}, "`url` must begin with http:// or https:// for a model of the kind openai."),
        ({"max_waiting": -1}, "`max_waiting` must be 0 to 100000 (got -1)."),
        ({"fallbacks": ("m",)}, "`fallbacks` must be at most 8 names of other models."),
    ],
)
def test_the_message_about_an_invalid_model_names_the_parameter(wrong: dict[str, Any], message: str) -> None:
    assert model_fault(many(**wrong)) == message


def test_replicas_are_processes_with_names_that_cannot_be_registered() -> None:
    model = Model(name="m", kind="subprocess", command=("run",), replicas=3)
    assert model_fault(model) is None
    names = [endpoint.name for endpoint in endpoints_of(model)]
    assert (names[0], len(set(names))) == ("m", 3)
    assert all(model_fault(Model(name=name, kind="echo")) for name in names[1:])
    assert {registered_name(name) for name in names} == {"m"}


def test_a_model_with_one_endpoint_and_no_limits_needs_no_pool() -> None:
    plain = Model(name="m", kind="openai", url=URLS[0])
    assert needs_no_pool(plain)
    for more in ({"max_parallel": 1}, {"fallbacks": ("n",)}, {"replicas": 2}):
        assert not needs_no_pool(Model(name="m", kind="echo", **more))
    assert not needs_no_pool(many())


# Slots of a pool


async def acquired(pool: EndpointPool, *tried: Any) -> Slot:
    return await pool.acquire(None, frozenset(tried), LATER)


async def test_a_failed_endpoint_cools_down_and_returns_after_a_successful_probe() -> None:
    pool = EndpointPool(many())
    slots = [await acquired(pool) for _ in range(4)]
    assert [slot.endpoint.name for slot in slots] == [*URLS[:2], *URLS[:2]]
    # when all requests to one endpoint fail at once, then they count as one failure
    for slot in slots[::2]:
        slot.failed(REFUSED)
        slot.release()
    endpoint = slots[0].endpoint
    assert (endpoint.state, endpoint.cooldowns) == ("resting", 1)
    assert {(await acquired(pool)).endpoint.name for _ in range(5)} == {URLS[1]}
    # when its cooldown is over, then one request at a time probes it
    pool._end_cooldown(endpoint, endpoint.generation)
    probe = await acquired(pool)
    assert probe.endpoint is endpoint
    assert (await acquired(pool)).endpoint is not endpoint
    # and a probe that is released without an answer lets the next request probe
    probe.release()
    probe = await acquired(pool)
    assert probe.endpoint is endpoint
    probe.failed(REFUSED)
    probe.release()
    assert (endpoint.state, endpoint.cooldowns) == ("resting", 2)
    # until the endpoint answers
    pool._end_cooldown(endpoint, endpoint.generation)
    (await acquired(pool)).succeeded()
    assert (endpoint.state, endpoint.cooldowns, (await acquired(pool)).endpoint) == ("up", 0, endpoint)


async def test_server_errors_start_a_cooldown_only_after_several_in_a_row() -> None:
    pool = EndpointPool(many(1, fallbacks=("other",)))
    server_error, client_error = ModelAnswered(500, ""), ModelAnswered(400, "")
    for error, state in [
        (server_error, "up"),
        (server_error, "up"),
        (client_error, "up"),
        (server_error, "up"),
        (server_error, "up"),
    ]:
        with await acquired(pool) as slot:
            slot.failed(error)
            assert slot.endpoint.state == state
    with await acquired(pool) as slot:
        slot.failed(server_error)
        assert slot.endpoint.state == "resting"
    with pytest.raises(ModelDown) as raised:
        await acquired(pool)
    assert 0.4 < (raised.value.retry_after_seconds or 0) <= 0.5


@pytest.mark.parametrize("status", [401, 402])
async def test_an_endpoint_whose_account_is_at_fault_cools_down_at_once(status: int) -> None:
    pool = EndpointPool(many())
    with await acquired(pool) as slot:
        slot.failed(ModelAnswered(status, "no credit"))

    first = pool.statuses()[0]
    assert (first.state, first.fault) == ("resting", "no credit")
    assert 29 < (first.cooldown_seconds or 0) <= 30


@pytest.mark.parametrize("status", [403, 404, 405, 501])
@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_refusal_blames_the_endpoint_only_if_another_one_answers(status: int, is_answered: bool) -> None:
    pool = EndpointPool(many(1, fallbacks=("other",)))
    for _ in range(SOFT_FAILURES):
        attempt = Attempt(a_job(), stream=False)
        with await acquired(pool) as slot:
            attempt.refusals.append((slot, ModelAnswered(status, "unknown")))
        if is_answered:
            attempt.take(b"{}")
        attempt.attribute_refusals()

    assert pool.statuses()[0].state == ("resting" if is_answered else "up")


def a_job() -> Job:
    return Job(
        id="1",
        status="bot",
        door="openai",
        lane="now",
        user_id=1,
        token_id=1,
        target="m",
        model="m",
        path=CHAT,
        body=b"{}",
    )


async def test_a_single_endpoint_without_fallback_has_no_cooldown() -> None:
    pool = EndpointPool(many(1, max_parallel=1))
    for _ in range(5):
        with await acquired(pool) as slot:
            slot.failed(REFUSED)


async def test_waiting_is_bounded_in_length_and_in_time() -> None:
    pool = EndpointPool(many(1, max_parallel=1, max_waiting=1, queue_seconds=0.05))
    slot = await acquired(pool)
    waiting = asyncio.ensure_future(acquired(pool))
    await asyncio.sleep(0)
    with pytest.raises(ModelBusy):
        await acquired(pool)
    with pytest.raises(ModelBusy):
        await waiting
    with pytest.raises(ModelTimedOut):
        await pool.acquire(None, frozenset(), asyncio.get_running_loop().time() + 0.01)
    slot.release()
    assert (pool.waiting, (await acquired(pool)).endpoint.load) == (0, 1)


async def test_a_waiting_caller_fails_at_once_when_all_endpoints_cool_down() -> None:
    pool = EndpointPool(many(2, max_parallel=1))
    slots = [await acquired(pool), await acquired(pool)]
    waiting = asyncio.ensure_future(acquired(pool))
    await asyncio.sleep(0)
    for slot in slots:
        assert not waiting.done()
        slot.failed(REFUSED)
    async with asyncio.timeout(60):
        with pytest.raises(ModelDown):
            await waiting


async def test_an_endpoint_after_its_cooldown_serves_a_waiting_caller() -> None:
    pool = EndpointPool(many(2, max_parallel=1))
    first, other = await acquired(pool), await acquired(pool)
    first.failed(ModelAnswered(429, "", retry_after_seconds=0.01))
    first.release()
    waiting = asyncio.ensure_future(acquired(pool))
    async with asyncio.timeout(60):
        assert (await waiting).endpoint is first.endpoint
    assert other.endpoint.load == 1


async def test_registering_a_model_again_keeps_the_state_of_its_endpoints() -> None:
    pools = EndpointPools()
    pool = pools.of(many(2, max_parallel=1))
    first, second = await acquired(pool), await acquired(pool)
    first.failed(REFUSED)
    first.release()
    waiting = asyncio.ensure_future(acquired(pool))
    await asyncio.sleep(0)
    # when each endpoint allows two requests, then the waiting one gets a slot of the healthy endpoint
    assert pools.of(many(2, max_parallel=2)) is pool
    assert (await waiting).endpoint is second.endpoint
    # and a removed endpoint gets no new requests, while its running ones finish
    pools.of(many(1))
    second.release()
    with pytest.raises(ModelDown):
        await acquired(pool)
    assert [status.state for status in pool.statuses()] == ["resting"]


FAILURES: dict[str, ModelFailed] = {"refused": REFUSED, "broken": ModelAnswered(500, "")}
EVENTS = ["come", "come", "come", "come", "leave", "cancel", "refused", "wake", "succeed", "register", *FAILURES]
# Several events may happen before a task that they woke runs.
BURSTS = st.lists(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 63)), min_size=1, max_size=4), max_size=40)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["least-load", "prefix-hash"]), st.integers(1, 2), BURSTS)
def test_under_any_events_no_caller_waits_beside_a_free_slot_and_limits_hold(
    balance: str, count: int, bursts: list[list[tuple[str, int]]]
) -> None:
    async def run() -> None:
        harness = CallersHarness(balance, count)
        for burst in bursts:
            for event, number in burst:
                getattr(harness, event if event not in FAILURES else "fail")(number, event)
            await harness.run_woken_tasks()
            harness.check()
        await harness.drain()

    asyncio.run(run())


class CallersHarness:
    """The callers of one model: those that hold a slot, and those that wait, with the endpoints that each has tried."""

    def __init__(self, balance: str, count: int) -> None:
        self.balance = balance
        self.pool = EndpointPool(self.model(count))
        self.slots: list[Slot] = []
        self.waiting: list[tuple[asyncio.Future[Slot], frozenset[Any]]] = []

    def model(self, count: int) -> Model:
        return many(count, max_parallel=1, max_waiting=6, balance=self.balance, fallbacks=("other",))

    def come(self, number: int, _: str) -> None:
        tried = frozenset(
            endpoint for index, endpoint in enumerate(self.pool._endpoints) if number >> index & 1 and number > 47
        )
        key = number if self.balance == "prefix-hash" else None
        self.waiting.append((asyncio.ensure_future(self.pool.acquire(key, tried, LATER)), tried))

    def cancel(self, number: int, _: str) -> None:
        if self.waiting:
            self.waiting[number % len(self.waiting)][0].cancel()

    def leave(self, number: int, _: str) -> None:
        if self.slots:
            self.slots.pop(number % len(self.slots)).release()

    def succeed(self, number: int, _: str) -> None:
        if self.slots:
            self.slots[number % len(self.slots)].succeeded()

    def fail(self, number: int, event: str) -> None:
        if self.slots:
            self.slots[number % len(self.slots)].failed(FAILURES[event])

    def wake(self, number: int, _: str) -> None:
        endpoint = self.pool._endpoints[number % len(self.pool._endpoints)]
        self.pool._end_cooldown(endpoint, endpoint.generation)

    def register(self, number: int, _: str) -> None:
        self.pool.update(self.model(number % 2 + 1))

    async def run_woken_tasks(self) -> None:
        """Let woken tasks run, and check that callers that may use the same endpoints are served in order."""
        for _ in range(4):
            await asyncio.sleep(0)
        overtaken = set[frozenset[Any]]()
        for task, tried in self.waiting:
            if not task.done():
                overtaken.add(tried)
            elif not task.cancelled() and task.exception() is None:
                assert tried not in overtaken
                self.slots.append(task.result())
        self.waiting = [caller for caller in self.waiting if not caller[0].done()]

    def check(self) -> None:
        assert self.pool.waiting == len(self.waiting) <= 6
        for endpoint in {slot.endpoint for slot in self.slots} | set(self.pool._endpoints):
            assert endpoint.load == sum(slot.endpoint is endpoint for slot in self.slots) <= 1
            assert endpoint.probes <= 1
        for _, tried in self.waiting:
            others = [endpoint for endpoint in self.pool._endpoints if endpoint not in tried]
            assert not any(endpoint.is_open for endpoint in others), "it waits beside a free seat"
            assert any(endpoint.state != "resting" for endpoint in others), "it waits in vain"

    async def drain(self) -> None:
        """Release all slots and end all cooldowns; check that every waiting caller is served."""
        for _ in range(20):
            while self.slots:
                self.slots[-1].succeeded()
                self.slots.pop().release()
            for number in range(2):
                self.wake(number, "")
            await self.run_woken_tasks()
        assert not self.waiting
        assert self.pool.waiting == 0
        assert all(endpoint.load == 0 for endpoint in self.pool._endpoints)
