"""Endpoints of models as this process sees them: load, cooldowns, and the requests that wait for a slot."""

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

# Beyond this number, pools without load and cooldowns are discarded.
MAX_POOLS = 1000


class EndpointPools:
    """Pools of the models that have several endpoints or replicas, fallbacks, or a limit of parallel requests."""

    def __init__(self) -> None:
        self._pools: dict[str, EndpointPool] = {}

    def of(self, model: Model) -> EndpointPool:
        """Return the pool of `model`, updated to its present definition."""
        pool = self._pools.get(model.name)
        if pool is None:
            if len(self._pools) >= MAX_POOLS:
                self._pools = {name: each for name, each in self._pools.items() if not each.is_idle}
            pool = self._pools[model.name] = EndpointPool(model)
        elif pool.model is not model:
            pool.update(model)
        return pool

    def all(self) -> list[EndpointPool]:
        """Return the pools in use."""
        return list(self._pools.values())


class EndpointPool:
    """Endpoints of one model, with a queue of requests for when no slot is free.

    Invariant: no request in the queue could have a slot now, because each change that may free one calls
    `_assign_slots`. So a new request that finds a free slot overtakes none that could have used it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._endpoints: list[Endpoint] = []
        self._queue: dict[_Waiter, None] = {}
        self._next_index = 0
        self.cooldowns = 0
        """Number of cooldowns that have begun."""
        self.update(model)

    def update(self, model: Model) -> None:
        """Apply a new definition of the model. Endpoints that existed before keep their state."""
        endpoints = {endpoint.name: endpoint for endpoint in self._endpoints}
        self.model = model
        self._endpoints = [_reuse_or_create(endpoints, each) for each in endpoints_of(model)]
        self._assign_slots()
        self._fail_waiters()

    @property
    def has_cooldowns(self) -> bool:
        """True if failed endpoints get a cooldown: only where another endpoint or model can answer."""
        return self.is_many or bool(self.model.fallbacks)

    @property
    def is_many(self) -> bool:
        """True if there are several endpoints."""
        return len(self._endpoints) > 1

    @property
    def is_idle(self) -> bool:
        """True if the pool has no load, no queue and no cooldowns, so that it can be discarded."""
        return not self._queue and all(endpoint.load == 0 and endpoint.state == "up" for endpoint in self._endpoints)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def statuses(self) -> list[EndpointStatus]:
        """Return the present status of each endpoint."""
        now = asyncio.get_running_loop().time()
        return [
            EndpointStatus(
                endpoint.model,
                endpoint.load,
                endpoint.state,
                endpoint.cooldown_ends_at - now if endpoint.state == "resting" else None,
                None if endpoint.state == "up" else endpoint.fault,
            )
            for endpoint in self._endpoints
        ]

    async def acquire(self, key: int | None, tried: frozenset[Endpoint], deadline: float) -> Slot:
        """Return a slot at an endpoint that is not in `tried`, waiting for one if necessary. The caller releases it.

        `key` selects the preferred endpoint (None: the least loaded one); `deadline` is on the loop's clock. Raises
        ModelDown if all other endpoints are in cooldown, ModelBusy if the queue is full or the wait took too long,
        ModelTimedOut after `deadline`.
        """
        slot = self._take_free_slot(key, tried)
        if slot is not None:
            return slot
        if self._has_no_endpoint(tried):
            raise self.unavailable_error()
        if len(self._queue) >= self.model.max_waiting:
            limit = self.model.max_waiting
            raise ModelBusy(
                f"{limit} requests already wait for the model {self.model.name} (`max_waiting`); retry later."
            )
        return await self._wait(_Waiter(key, tried), deadline)

    async def _wait(self, waiter: _Waiter, deadline: float) -> Slot:
        loop = asyncio.get_running_loop()
        wait_deadline = min(loop.time() + self.model.queue_seconds, deadline)
        self._queue[waiter] = None
        try:
            async with asyncio.timeout_at(wait_deadline):
                slot = await waiter.slot
        except BaseException as error:
            # A slot may have been assigned at the moment of the cancellation.
            if waiter.slot.done() and not waiter.slot.cancelled() and (slot := waiter.slot.result()) is not None:
                slot.release()
            if isinstance(error, TimeoutError):
                raise self._timeout_error(is_total_timeout=wait_deadline == deadline) from None
            raise
        finally:
            self._queue.pop(waiter, None)
        if slot is None:
            raise self.unavailable_error()
        return slot

    def _timeout_error(self, *, is_total_timeout: bool) -> SignoffError:
        if is_total_timeout:
            return ModelTimedOut(f"The model {self.model.timeouts.fault('total_seconds')}.")
        if all(endpoint.state != "up" for endpoint in self._endpoints):
            return self.unavailable_error()
        return ModelBusy(
            f"The model {self.model.name} had no free slot within {self.model.queue_seconds:g} s (`queue_seconds`); "
            "retry later."
        )

    def unavailable_error(self, message: str | None = None) -> ModelDown:
        """Return the error for a model without usable endpoints, with the time until the first cooldown ends."""
        now = asyncio.get_running_loop().time()
        waits = [
            max(0.0, endpoint.cooldown_ends_at - now) for endpoint in self._endpoints if endpoint.state == "resting"
        ]
        wait = min(waits) if len(waits) == len(self._endpoints) else None
        text = message or f"All endpoints of the model {self.model.name} are unavailable after failures."
        return ModelDown(text, retry_after_seconds=wait)

    def _take_free_slot(self, key: int | None, tried: frozenset[Endpoint]) -> Slot | None:
        """Take a slot that is free now; return None if there is none."""
        loads = [endpoint.load if endpoint.is_open and endpoint not in tried else None for endpoint in self._endpoints]
        if key is None:
            index = least_loaded(loads, self._next_index)
        else:
            active = [endpoint.load for endpoint in self._endpoints if endpoint.state != "resting"]
            keys = [endpoint.key for endpoint in self._endpoints]
            index = choose_by_hash(key, keys, loads, bounded_load(sum(active), len(active)))
        if index is None:
            return None
        self._next_index = index + 1
        return Slot(self, self._endpoints[index])

    def _has_no_endpoint(self, tried: frozenset[Endpoint]) -> bool:
        return all(endpoint in tried or endpoint.state == "resting" for endpoint in self._endpoints)

    def _assign_slots(self) -> None:
        """Assign free slots to waiting requests, first come, first served."""
        served = list[_Waiter]()
        for waiter in self._queue:
            if not any(endpoint.is_open for endpoint in self._endpoints):
                break
            if not waiter.slot.done() and (slot := self._take_free_slot(waiter.key, waiter.tried)) is not None:
                waiter.slot.set_result(slot)
                served.append(waiter)
        for waiter in served:
            del self._queue[waiter]

    def _fail_waiters(self) -> None:
        """Fail the waiting requests for which no endpoint is left."""
        for waiter in list(self._queue):
            if not waiter.slot.done() and self._has_no_endpoint(waiter.tried):
                waiter.slot.set_result(None)
                del self._queue[waiter]

    def slot_released(self) -> None:
        """Assign the slot that was released."""
        self._assign_slots()

    def mark_healthy(self, endpoint: Endpoint) -> None:
        """Record that the endpoint works; end its probing."""
        endpoint.soft_failures = endpoint.cooldowns = 0
        if endpoint.state != "up":
            endpoint.state = "up"
            self._assign_slots()

    def mark_failed(self, endpoint: Endpoint, error: SignoffError) -> None:
        """Record a failed request; start a cooldown if the endpoint is at fault.

        The endpoint is at fault after a hard failure, after SOFT_FAILURES soft failures in a row, or after a soft
        failure of a probe.
        """
        if not self.has_cooldowns:
            return
        endpoint.soft_failures += is_soft_failure(error)
        if not is_hard_failure(error) and not (
            is_soft_failure(error) and (endpoint.soft_failures >= SOFT_FAILURES or endpoint.state == "waking")
        ):
            return
        loop = asyncio.get_running_loop()
        endpoint.generation += 1
        self.cooldowns += 1
        endpoint.soft_failures, endpoint.cooldowns, endpoint.state = 0, endpoint.cooldowns + 1, "resting"
        endpoint.fault = error.message
        seconds = cooldown_seconds(error, endpoint.cooldowns)
        endpoint.cooldown_ends_at = loop.time() + seconds
        loop.call_later(seconds, self._end_cooldown, endpoint, endpoint.generation)
        self._fail_waiters()

    def _end_cooldown(self, endpoint: Endpoint, generation: int) -> None:
        if (endpoint.generation, endpoint.state) == (generation, "resting"):
            endpoint.state = "waking"
            self._assign_slots()


State = Literal["up", "resting", "waking"]


class EndpointStatus(msgspec.Struct, frozen=True):
    """Status of an endpoint in this process."""

    model: Model
    """The model as it is configured for this endpoint."""
    load: int
    """Requests in progress from this process."""
    state: State
    """`up`, `resting` during a cooldown, `waking` (probed by one request at a time) after it."""
    cooldown_seconds: float | None
    """Time until the cooldown ends; None if there is none."""
    fault: str | None
    """Message of the error that began the latest cooldown; None if the endpoint has answered since."""


class Endpoint:
    """Endpoint of a model. After a cooldown it is `waking`: it gets one request at a time, until one succeeds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        """The model as it is configured for this endpoint."""
        self.name = endpoint_name(model)
        self.key = endpoint_key(self.name)
        """Key of the name for the choice by hash."""
        self.state: State = "up"
        self.load = 0
        """Requests in progress."""
        self.generation = 0
        """Number of all cooldowns: the outcome of a request that began before the latest one does not count."""
        self.soft_failures = 0
        """Number of failures in a row that the requests may have caused."""
        self.cooldowns = 0
        """Number of cooldowns since the last success, by which the next one is longer."""
        self.cooldown_ends_at = 0.0
        """End of the latest cooldown, in seconds on the loop's clock."""
        self.fault: str | None = None
        """Message of the error that began the latest cooldown."""
        self.probes = 0
        """Requests in progress that began while the endpoint was `waking`."""

    @property
    def is_open(self) -> bool:
        """True if the endpoint can take a request now."""
        if self.model.max_parallel is not None and self.load >= self.model.max_parallel:
            return False
        return self.state == "up" or (self.state == "waking" and not self.probes)


class Slot:
    """Slot of a request at an endpoint, taken on construction. Use it as a context manager, or call `release`."""

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
        """Record that the endpoint answered."""
        self._end_probe()
        if self._generation == self.endpoint.generation:
            self._pool.mark_healthy(self.endpoint)

    def failed(self, error: SignoffError) -> None:
        """Record an error. An error answer for which the request alone is to blame counts as success.

        A refusal counts once it is known whether another endpoint answers the same request: see `core.balance`.
        """
        self._end_probe()
        if self._generation != self.endpoint.generation:
            return
        if isinstance(error, ModelAnswered) and not (is_hard_failure(error) or is_soft_failure(error)):
            self.succeeded()
        else:
            self._pool.mark_failed(self.endpoint, error)

    def release(self) -> None:
        """Free the slot. Later calls do nothing."""
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
    """Request in the queue. Its slot is None if no endpoint is left."""

    def __init__(self, key: int | None, tried: frozenset[Endpoint]) -> None:
        self.key = key
        self.tried = tried
        self.slot: asyncio.Future[Slot | None] = asyncio.get_running_loop().create_future()


def endpoint_name(model: Model) -> str:
    """Return what identifies an endpoint of a model: its URL and upstream model, or the name of the process."""
    return model.name if model.url is None else f"{model.url} {model.upstream_model or ''}".strip()


def _reuse_or_create(endpoints: dict[str, Endpoint], model: Model) -> Endpoint:
    endpoint = endpoints.get(endpoint_name(model)) or Endpoint(model)
    endpoint.model = model
    return endpoint
