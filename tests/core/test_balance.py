"""Which endpoint is asked, and which rests: the rules, and the seats of a pool under every order of events."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.core.balance import (
    LOAD_FACTOR,
    bounded_load,
    choose_by_hash,
    cooldown_seconds,
    endpoint_key,
    least_loaded,
    may_succeed_elsewhere,
    prefix_key,
)
from signoff.core.model import (
    EndpointConfig,
    Model,
    Timeouts,
    endpoints_of,
    has_single_endpoint,
    model_fault,
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
from signoff.runtime.pools import EndpointPool, EndpointPools, Slot

pytestmark = pytest.mark.anyio
REFUSED = ModelUnreachable("Connection refused")
LATER = 1e9
URLS = [f"http://h{number}" for number in range(8)]


def many(count: int = 2, **more: Any) -> Model:
    endpoints = tuple(EndpointConfig(url=url) for url in URLS[:count])
    return Model(**({"name": "m", "kind": "openai", "endpoints": endpoints} | more))


# The rules


@given(st.lists(st.none() | st.integers(0, 5), max_size=8), st.integers(0, 20))
def test_the_least_loaded_is_asked_and_nobody_who_cannot_be(loads: list[int | None], turn: int) -> None:
    free = [load for load in loads if load is not None]
    place = least_loaded(loads, turn)
    assert (place is None) is (not free)
    assert place is None or loads[place] == min(free)


def test_equals_are_asked_in_turn() -> None:
    turn, asked = 0, Counter[int]()
    for _ in range(300):
        place = least_loaded([0, 0, 0], turn)
        assert place is not None
        asked[place] += 1
        turn = place + 1
    assert asked == {0: 100, 1: 100, 2: 100}


def homes(count: int, without: int | None = None) -> list[int]:
    """Where 2000 conversations are at home."""
    names = [endpoint_key(url) for url in URLS[:count]]
    loads = [None if place == without else 0 for place in range(count)]
    found = [choose_by_hash(prefix_key("m", b"%d" % number), names, loads, 10**6) for number in range(2000)]
    assert None not in found
    return [place for place in found if place is not None]


def test_conversations_are_shared_evenly() -> None:
    shares = Counter(homes(5))
    assert set(shares) == set(range(5))
    assert all(300 < share < 500 for share in shares.values())


def test_when_an_endpoint_leaves_its_conversations_move_to_all_others_and_no_other_moves() -> None:
    before, after = homes(5), homes(5, without=2)
    moved = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
    assert {was for was, _ in moved} == {2}
    assert len(moved) == before.count(2)
    assert {now for _, now in moved} == {0, 1, 3, 4}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=200), st.integers(1, 6))
def test_no_endpoint_carries_more_than_its_bounded_share(keys: list[int], count: int) -> None:
    names, loads = [endpoint_key(url) for url in URLS[:count]], [0] * count
    for total, key in enumerate(keys):
        place = choose_by_hash(key, names, loads, bounded_load(total, count))
        assert place is not None
        loads[place] += 1
        assert loads[place] <= -(-LOAD_FACTOR * (total + 1) // count)


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
    # a response's input is a text in the first turn, and a list afterwards
    first = json.dumps({"instructions": "Be brief.", "input": "Hello?"}).encode()
    items = [{"role": "user", "content": "Hello?"}, {"type": "message", "role": "assistant", "content": []}]
    later = json.dumps({"instructions": "Be brief.", "input": items}).encode()
    assert prefix_key("m", first) == prefix_key("m", later)
    # and a caller who knows better says so
    told = [prefix_key("m", chat("", text, prompt_cache_key="mine")) for text in ("a", "b")]
    assert told[0] == told[1]


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
        (ModelAnswered(401, ""), False),
        (ModelAnswered(404, ""), False),
        (ModelAnswered(409, ""), False),
        (ModelAnswered(422, ""), False),
        (ModelAnswered(501, ""), False),
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
def test_a_request_that_is_at_fault_is_asked_nowhere_else(error: SignoffError, helps: bool) -> None:
    assert may_succeed_elsewhere(error) is helps


def test_rests_grow_up_to_a_limit_and_are_as_long_as_was_asked_for() -> None:
    waits = [cooldown_seconds(REFUSED, failures) for failures in range(1, 12)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.5, 30)
    assert cooldown_seconds(ModelAnswered(429, "", retry_after_seconds=7), 1) == 7
    assert cooldown_seconds(ModelAnswered(429, "", retry_after_seconds=1e9), 1) == 300


# What a model may be


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
def test_what_cannot_be_balanced_is_refused(wrong: dict[str, Any]) -> None:
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
def test_the_message_about_a_wrong_model_names_the_parameter(wrong: dict[str, Any], message: str) -> None:
    assert model_fault(many(**wrong)) == message


def test_replicas_are_processes_under_names_that_nobody_can_register() -> None:
    model = Model(name="m", kind="subprocess", command=("run",), replicas=3)
    assert model_fault(model) is None
    names = [each.name for each in endpoints_of(model)]
    assert (names[0], len(set(names))) == ("m", 3)
    assert all(model_fault(Model(name=name, kind="echo")) for name in names[1:])
    assert {registered_name(name) for name in names} == {"m"}


def test_a_model_in_one_place_without_limits_needs_no_pool() -> None:
    plain = Model(name="m", kind="openai", url=URLS[0])
    assert has_single_endpoint(plain)
    for more in ({"max_parallel": 1}, {"fallbacks": ("n",)}, {"replicas": 2}):
        assert not has_single_endpoint(Model(name="m", kind="echo", **more))
    assert not has_single_endpoint(many())


# Seats


async def seated(pool: EndpointPool, *tried: Any) -> Slot:
    return await pool.acquire(None, frozenset(tried), LATER)


async def test_what_failed_rests_and_what_answers_returns() -> None:
    pool = EndpointPool(many())
    seats = [await seated(pool) for _ in range(4)]
    assert [seat.endpoint.name for seat in seats] == [*URLS[:2], *URLS[:2]]
    # when all who ask one fail at once, that is one failure
    for seat in seats[::2]:
        seat.failed(REFUSED)
        seat.release()
    spot = seats[0].endpoint
    assert (spot.state, spot.cooldowns) == ("resting", 1)
    assert {(await seated(pool)).endpoint.name for _ in range(5)} == {URLS[1]}
    # when its rest is over one request at a time tries it
    pool._end_cooldown(spot, spot.generation)
    trial = await seated(pool)
    assert trial.endpoint is spot
    assert (await seated(pool)).endpoint is not spot
    # and one that leaves without an answer lets the next one try
    trial.release()
    trial = await seated(pool)
    assert trial.endpoint is spot
    trial.failed(REFUSED)
    trial.release()
    assert (spot.state, spot.cooldowns) == ("resting", 2)
    # until it answers
    pool._end_cooldown(spot, spot.generation)
    (await seated(pool)).succeeded()
    assert (spot.state, spot.cooldowns, (await seated(pool)).endpoint) == ("up", 0, spot)


async def test_errors_that_a_request_may_be_to_blame_for_count_in_a_row() -> None:
    pool = EndpointPool(many(1, fallbacks=("other",)))
    broken, rude = ModelAnswered(500, ""), ModelAnswered(400, "")
    for error, state in [(broken, "up"), (broken, "up"), (rude, "up"), (broken, "up"), (broken, "up")]:
        with await seated(pool) as seat:
            seat.failed(error)
            assert seat.endpoint.state == state
    with await seated(pool) as seat:
        seat.failed(broken)
        assert seat.endpoint.state == "resting"
    with pytest.raises(ModelDown) as told:
        await seated(pool)
    assert 0.4 < (told.value.retry_after_seconds or 0) <= 0.5


async def test_a_lone_endpoint_does_not_rest() -> None:
    pool = EndpointPool(many(1, max_parallel=1))
    for _ in range(5):
        with await seated(pool) as seat:
            seat.failed(REFUSED)


async def test_the_line_is_bounded_in_length_and_in_time() -> None:
    pool = EndpointPool(many(1, max_parallel=1, max_waiting=1, queue_seconds=0.05))
    seat = await seated(pool)
    waiting = asyncio.ensure_future(seated(pool))
    await asyncio.sleep(0)
    with pytest.raises(ModelBusy):
        await seated(pool)
    with pytest.raises(ModelBusy):
        await waiting
    with pytest.raises(ModelTimedOut):
        await pool.acquire(None, frozenset(), asyncio.get_running_loop().time() + 0.01)
    seat.release()
    assert (pool.waiting, (await seated(pool)).endpoint.load) == (0, 1)


async def test_who_waits_where_all_have_come_to_rest_learns_it_at_once() -> None:
    pool = EndpointPool(many(2, max_parallel=1))
    seats = [await seated(pool), await seated(pool)]
    waiting = asyncio.ensure_future(seated(pool))
    await asyncio.sleep(0)
    for seat in seats:
        assert not waiting.done()
        seat.failed(REFUSED)
    async with asyncio.timeout(60):
        with pytest.raises(ModelDown):
            await waiting


async def test_an_endpoint_that_wakes_serves_who_waits_for_another() -> None:
    pool = EndpointPool(many(2, max_parallel=1))
    first, other = await seated(pool), await seated(pool)
    first.failed(ModelAnswered(429, "", retry_after_seconds=0.01))
    first.release()
    waiting = asyncio.ensure_future(seated(pool))
    async with asyncio.timeout(60):
        assert (await waiting).endpoint is first.endpoint
    assert other.endpoint.load == 1


async def test_a_model_that_is_registered_anew_keeps_what_is_known_of_its_endpoints() -> None:
    pools = EndpointPools()
    pool = pools.of(many(2, max_parallel=1))
    one, two = await seated(pool), await seated(pool)
    one.failed(REFUSED)
    one.release()
    waiting = asyncio.ensure_future(seated(pool))
    await asyncio.sleep(0)
    # when there is room for two at each, who waits has a seat at the one that is well
    assert pools.of(many(2, max_parallel=2)) is pool
    assert (await waiting).endpoint is two.endpoint
    # and one that was removed is asked no more, while its callers finish
    pools.of(many(1))
    two.release()
    with pytest.raises(ModelDown):
        await seated(pool)
    assert [sight.state for sight in pool.statuses()] == ["resting"]


FAILURES: dict[str, ModelFailed] = {"refused": REFUSED, "broken": ModelAnswered(500, "")}
EVENTS = ["come", "come", "come", "come", "leave", "cancel", "refused", "wake", "well", "register", *FAILURES]
# Several things may happen before anybody who was told of them runs.
BURSTS = st.lists(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 63)), min_size=1, max_size=4), max_size=40)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["least-load", "prefix-hash"]), st.integers(1, 2), BURSTS)
def test_whatever_happens_nobody_waits_beside_a_free_seat_and_no_limit_is_exceeded(
    balance: str, count: int, bursts: list[list[tuple[str, int]]]
) -> None:
    async def run() -> None:
        crowd = Crowd(balance, count)
        for burst in bursts:
            for event, number in burst:
                getattr(crowd, event if event not in FAILURES else "fail")(number, event)
            await crowd.settle_down()
            crowd.check()
        await crowd.go_home()

    asyncio.run(run())


class Crowd:
    """All who ask one model: those with a seat, and those in the line, with what they tried before."""

    def __init__(self, balance: str, count: int) -> None:
        self.balance = balance
        self.pool = EndpointPool(self.model(count))
        self.seats: list[Slot] = []
        self.waiting: list[tuple[asyncio.Future[Slot], frozenset[Any]]] = []

    def model(self, count: int) -> Model:
        return many(count, max_parallel=1, max_waiting=6, balance=self.balance, fallbacks=("other",))

    def come(self, number: int, _: str) -> None:
        tried = frozenset(
            spot for place, spot in enumerate(self.pool._endpoints) if number >> place & 1 and number > 47
        )
        key = number if self.balance == "prefix-hash" else None
        self.waiting.append((asyncio.ensure_future(self.pool.acquire(key, tried, LATER)), tried))

    def cancel(self, number: int, _: str) -> None:
        if self.waiting:
            self.waiting[number % len(self.waiting)][0].cancel()

    def leave(self, number: int, _: str) -> None:
        if self.seats:
            self.seats.pop(number % len(self.seats)).release()

    def well(self, number: int, _: str) -> None:
        if self.seats:
            self.seats[number % len(self.seats)].succeeded()

    def fail(self, number: int, event: str) -> None:
        if self.seats:
            self.seats[number % len(self.seats)].failed(FAILURES[event])

    def wake(self, number: int, _: str) -> None:
        spot = self.pool._endpoints[number % len(self.pool._endpoints)]
        self.pool._end_cooldown(spot, spot.generation)

    def register(self, number: int, _: str) -> None:
        self.pool.update(self.model(number % 2 + 1))

    async def settle_down(self) -> None:
        """Lets all who were told something hear it. The line is in order for those who may have the same seats."""
        for _ in range(4):
            await asyncio.sleep(0)
        overtaken = set[frozenset[Any]]()
        for task, tried in self.waiting:
            if not task.done():
                overtaken.add(tried)
            elif not task.cancelled() and task.exception() is None:
                assert tried not in overtaken
                self.seats.append(task.result())
        self.waiting = [each for each in self.waiting if not each[0].done()]

    def check(self) -> None:
        assert self.pool.waiting == len(self.waiting) <= 6
        for spot in {seat.endpoint for seat in self.seats} | set(self.pool._endpoints):
            assert spot.load == sum(seat.endpoint is spot for seat in self.seats) <= 1
            assert spot.probes <= 1
        for _, tried in self.waiting:
            others = [spot for spot in self.pool._endpoints if spot not in tried]
            assert not any(spot.is_open for spot in others), "it waits beside a free seat"
            assert any(spot.state != "resting" for spot in others), "it waits in vain"

    async def go_home(self) -> None:
        """When everybody leaves and all rests are over, all who waited were served."""
        for _ in range(20):
            while self.seats:
                self.seats[-1].succeeded()
                self.seats.pop().release()
            for number in range(2):
                self.wake(number, "")
            await self.settle_down()
        assert not self.waiting
        assert self.pool.waiting == 0
        assert all(spot.load == 0 for spot in self.pool._endpoints)
