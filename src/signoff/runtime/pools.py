"""The endpoints of models as this process sees them: how many requests each one works on, which rest, and who waits."""

from __future__ import annotations

import asyncio
from typing import Literal, Self

import msgspec

from signoff.core.balance import (
    SOFT_FAILURES,
    bounded_load,
    choose_by_hash,
    cooldown_seconds,
    endpoint_key,
    is_hard_failure,
    is_soft_failure,
    least_loaded,
)
from signoff.core.model import Model, endpoints_of
from signoff.errors import ModelAnswered, ModelBusy, ModelDown, ModelTimedOut, SignoffError

# Models that are registered and forgotten must not add up.
MOST_POOLS = 1000


class EndpointPools:
    """The pools of models that are not in one place alone."""

    def __init__(self) -> None:
        self._pools: dict[str, EndpointPool] = {}

    def of(self, model: Model) -> EndpointPool:
        """The pool of `model`, which knows it as it is now."""
        pool = self._pools.get(model.name)
        if pool is None:
            if len(self._pools) >= MOST_POOLS:
                self._pools = {name: each for name, each in self._pools.items() if not each.is_idle}
            pool = self._pools[model.name] = EndpointPool(model)
        elif pool.model is not model:
            pool.update(model)
        return pool


class EndpointPool:
    """The endpoints of one model. Whoever asks there has a seat; where all are taken, one waits in a line for it.

    Nobody in the line could have a seat now: each change that may give one is followed by a look at the line. So who
    comes and finds a seat overtakes nobody who could have had it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._endpoints: list[Endpoint] = []
        self._queue: dict[_Waiter, None] = {}
        self._turn = 0
        self.update(model)

    def update(self, model: Model) -> None:
        """The model was registered anew; endpoints that it had before go on as they were."""
        known = {endpoint.name: endpoint for endpoint in self._endpoints}
        self.model = model
        self._endpoints = [_endpoint(known, each) for each in endpoints_of(model)]
        self._assign_slots()
        self._fail_hopeless()

    @property
    def has_cooldowns(self) -> bool:
        """Whether endpoints that fail rest: only where there is another to ask."""
        return self.is_many or bool(self.model.fallbacks)

    @property
    def is_many(self) -> bool:
        """Whether there are several endpoints."""
        return len(self._endpoints) > 1

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not self._queue and all(endpoint.load == 0 and endpoint.state == "up" for endpoint in self._endpoints)

    @property
    def waiting(self) -> int:
        """How many wait for a seat."""
        return len(self._queue)

    def statuses(self) -> list[EndpointStatus]:
        """Each endpoint as it is now."""
        now = asyncio.get_running_loop().time()
        return [
            EndpointStatus(
                endpoint.model,
                endpoint.load,
                endpoint.state,
                endpoint.cooldown_ends_at - now if endpoint.state == "resting" else None,
            )
            for endpoint in self._endpoints
        ]

    async def acquire(self, key: int | None, tried: frozenset[Endpoint], deadline: float) -> Slot:
        """A seat at an endpoint that was not `tried`; leave it. `key` says where it belongs, `deadline` is the loop's.

        Raises ModelDown where all others rest, ModelBusy where too many wait or it took too long, ModelTimedOut.
        """
        found = self._free_slot(key, tried)
        if found is not None:
            return found
        if self._is_hopeless(tried):
            raise self.unavailable_error()
        if len(self._queue) >= self.model.max_waiting:
            raise ModelBusy(f"Too many requests wait for the model {self.model.name} already.")
        return await self._wait(_Waiter(key, tried), deadline)

    async def _wait(self, waiter: _Waiter, deadline: float) -> Slot:
        loop = asyncio.get_running_loop()
        until = min(loop.time() + self.model.queue_seconds, deadline)
        self._queue[waiter] = None
        try:
            async with asyncio.timeout_at(until):
                slot = await waiter.slot
        except BaseException as error:
            # Who leaves may have been given a seat in the same moment.
            if waiter.slot.done() and not waiter.slot.cancelled() and (given := waiter.slot.result()) is not None:
                given.release()
            if isinstance(error, TimeoutError):
                raise self._timeout_error(is_over=until == deadline) from None
            raise
        finally:
            self._queue.pop(waiter, None)
        if slot is None:
            raise self.unavailable_error()
        return slot

    def _timeout_error(self, *, is_over: bool) -> SignoffError:
        if is_over:
            return ModelTimedOut(f"The model took more than {self.model.timeouts.total_seconds:g} s.")
        if all(endpoint.state != "up" for endpoint in self._endpoints):
            return self.unavailable_error()
        return ModelBusy(f"No turn came at the model {self.model.name} within {self.model.queue_seconds:g} s.")

    def unavailable_error(self, message: str | None = None) -> ModelDown:
        """The error that tells that nobody can be asked, and when the first rest ends."""
        now = asyncio.get_running_loop().time()
        waits = [
            max(0.0, endpoint.cooldown_ends_at - now) for endpoint in self._endpoints if endpoint.state == "resting"
        ]
        wait = min(waits) if len(waits) == len(self._endpoints) else None
        return ModelDown(message or f"All endpoints of the model {self.model.name} rest.", retry_after_seconds=wait)

    def _free_slot(self, key: int | None, tried: frozenset[Endpoint]) -> Slot | None:
        """A seat there is now, taken."""
        loads = [endpoint.load if endpoint.is_open and endpoint not in tried else None for endpoint in self._endpoints]
        if key is None:
            place = least_loaded(loads, self._turn)
        else:
            awake = [endpoint.load for endpoint in self._endpoints if endpoint.state != "resting"]
            place = choose_by_hash(
                key, [endpoint.key for endpoint in self._endpoints], loads, bounded_load(sum(awake), len(awake))
            )
        if place is None:
            return None
        self._turn = place + 1
        return Slot(self, self._endpoints[place])

    def _is_hopeless(self, tried: frozenset[Endpoint]) -> bool:
        return all(endpoint in tried or endpoint.state == "resting" for endpoint in self._endpoints)

    def _assign_slots(self) -> None:
        """Gives the seats there are to those who wait, the first one first."""
        given = list[_Waiter]()
        for waiter in self._queue:
            if not any(endpoint.is_open for endpoint in self._endpoints):
                break
            if not waiter.slot.done() and (slot := self._free_slot(waiter.key, waiter.tried)) is not None:
                waiter.slot.set_result(slot)
                given.append(waiter)
        for waiter in given:
            del self._queue[waiter]

    def _fail_hopeless(self) -> None:
        """Tells those who wait in vain."""
        for waiter in list(self._queue):
            if not waiter.slot.done() and self._is_hopeless(waiter.tried):
                waiter.slot.set_result(None)
                del self._queue[waiter]

    def slot_released(self) -> None:
        """A seat is free."""
        self._assign_slots()

    def mark_healthy(self, endpoint: Endpoint) -> None:
        """It answers."""
        endpoint.soft_failures = endpoint.cooldowns = 0
        if endpoint.state != "up":
            endpoint.state = "up"
            self._assign_slots()

    def mark_failed(self, endpoint: Endpoint, error: SignoffError) -> None:
        """It did not; it rests, if that tells that it is not well."""
        if not self.has_cooldowns:
            return
        endpoint.soft_failures += is_soft_failure(error)
        if not is_hard_failure(error) and not (
            is_soft_failure(error) and (endpoint.soft_failures >= SOFT_FAILURES or endpoint.state == "waking")
        ):
            return
        loop = asyncio.get_running_loop()
        endpoint.generation += 1
        endpoint.soft_failures, endpoint.cooldowns, endpoint.state = 0, endpoint.cooldowns + 1, "resting"
        seconds = cooldown_seconds(error, endpoint.cooldowns)
        endpoint.cooldown_ends_at = loop.time() + seconds
        loop.call_later(seconds, self._end_cooldown, endpoint, endpoint.generation)
        self._fail_hopeless()

    def _end_cooldown(self, endpoint: Endpoint, era: int) -> None:
        if (endpoint.generation, endpoint.state) == (era, "resting"):
            endpoint.state = "waking"
            self._assign_slots()


State = Literal["up", "resting", "waking"]


class EndpointStatus(msgspec.Struct, frozen=True):
    """An endpoint: the model as it is there, the requests it works on for this process, and for how long it rests."""

    model: Model
    load: int
    state: State
    cooldown_seconds: float | None


class Endpoint:
    """One endpoint. After a rest it is `waking`: one request at a time goes there, until one is answered.

    `era` counts its rests, so that what was asked before one tells nothing about it after. `soft` failures in a row
    are those that a request may be to blame for.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name = endpoint_name(model)
        self.key = endpoint_key(self.name)
        self.state: State = "up"
        self.load = 0
        self.generation = 0
        self.soft_failures = 0
        self.cooldowns = 0
        self.cooldown_ends_at = 0.0
        self.probes = 0

    @property
    def is_open(self) -> bool:
        """Whether it may be asked now."""
        if self.model.max_parallel is not None and self.load >= self.model.max_parallel:
            return False
        return self.state == "up" or (self.state == "waking" and not self.probes)


class Slot:
    """A request's place at an endpoint, taken as it is made."""

    def __init__(self, pool: EndpointPool, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._generation = endpoint.generation
        self._is_probe = endpoint.state == "waking"
        self._is_released = False
        endpoint.load += 1
        endpoint.probes += self._is_probe

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def succeeded(self) -> None:
        """The endpoint answers."""
        self._end_probe()
        if self._generation == self.endpoint.generation:
            self._pool.mark_healthy(self.endpoint)

    def failed(self, error: SignoffError) -> None:
        """It answered with an error, or did not answer. One that tells of the request alone is an answer."""
        self._end_probe()
        if self._generation != self.endpoint.generation:
            return
        if isinstance(error, ModelAnswered) and not (is_hard_failure(error) or is_soft_failure(error)):
            self.succeeded()
        else:
            self._pool.mark_failed(self.endpoint, error)

    def release(self) -> None:
        """Frees the place, once."""
        if self._is_released:
            return
        self._is_released = True
        self._end_probe()
        self.endpoint.load -= 1
        self._pool.slot_released()

    def _end_probe(self) -> None:
        self.endpoint.probes -= self._is_probe
        self._is_probe = False


class _Waiter:
    """Somebody in the line. The seat is None once there is nothing to wait for."""

    def __init__(self, key: int | None, tried: frozenset[Endpoint]) -> None:
        self.key = key
        self.tried = tried
        self.slot: asyncio.Future[Slot | None] = asyncio.get_running_loop().create_future()


def endpoint_name(model: Model) -> str:
    """What tells an endpoint from the others of its model: its address and what it calls the model, or a process."""
    return model.name if model.url is None else f"{model.url} {model.upstream_model or ''}".strip()


def _endpoint(known: dict[str, Endpoint], model: Model) -> Endpoint:
    endpoint = known.get(endpoint_name(model)) or Endpoint(model)
    endpoint.model = model
    return endpoint
