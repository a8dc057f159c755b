"""The endpoints of models as this process sees them: how many requests each one works on, which rest, and who waits."""

from __future__ import annotations

import asyncio
from typing import Literal, Self

import msgspec

from signoff.core.balance import (
    SOFT_FAILURES,
    is_hard,
    is_soft,
    least_loaded,
    most_of,
    name_key,
    nearest,
    rest_seconds,
)
from signoff.core.model import Model, endpoints_of
from signoff.errors import ModelAnswered, ModelBusy, ModelDown, ModelTimedOut, SignoffError

# Models that are registered and forgotten must not add up.
MOST_POOLS = 1000


class Pools:
    """The pools of models that are not in one place alone."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}

    def of(self, model: Model) -> Pool:
        """The pool of `model`, which knows it as it is now."""
        pool = self._pools.get(model.name)
        if pool is None:
            if len(self._pools) >= MOST_POOLS:
                self._pools = {name: each for name, each in self._pools.items() if not each.is_idle}
            pool = self._pools[model.name] = Pool(model)
        elif pool.model is not model:
            pool.change(model)
        return pool


class Pool:
    """The endpoints of one model. Whoever asks there has a seat; where all are taken, one waits in a line for it.

    Nobody in the line could have a seat now: each change that may give one is followed by a look at the line. So who
    comes and finds a seat overtakes nobody who could have had it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._spots: list[Spot] = []
        self._line: dict[_Waiter, None] = {}
        self._turn = 0
        self.change(model)

    def change(self, model: Model) -> None:
        """The model was registered anew; endpoints that it had before go on as they were."""
        known = {spot.name: spot for spot in self._spots}
        self.model = model
        self._spots = [_spot(known, each) for each in endpoints_of(model)]
        self._look()
        self._dismiss()

    @property
    def rests(self) -> bool:
        """Whether endpoints that fail rest: only where there is another to ask."""
        return self.is_many or bool(self.model.fallbacks)

    @property
    def is_many(self) -> bool:
        """Whether there are several endpoints."""
        return len(self._spots) > 1

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not self._line and all(spot.load == 0 and spot.state == "up" for spot in self._spots)

    @property
    def waiting(self) -> int:
        """How many wait for a seat."""
        return len(self._line)

    def sights(self) -> list[Sight]:
        """Each endpoint as it is now."""
        now = asyncio.get_running_loop().time()
        return [
            Sight(spot.model, spot.load, spot.state, spot.returns_at - now if spot.state == "resting" else None)
            for spot in self._spots
        ]

    async def seat(self, key: int | None, tried: frozenset[Spot], deadline: float) -> Seat:
        """A seat at an endpoint that was not `tried`; leave it. `key` says where it belongs, `deadline` is the loop's.

        Raises ModelDown where all others rest, ModelBusy where too many wait or it took too long, ModelTimedOut.
        """
        found = self._find(key, tried)
        if found is not None:
            return found
        if self._is_in_vain(tried):
            raise self.down()
        if len(self._line) >= self.model.max_waiting:
            raise ModelBusy(f"Too many requests wait for the model {self.model.name} already.")
        return await self._wait(_Waiter(key, tried), deadline)

    async def _wait(self, waiter: _Waiter, deadline: float) -> Seat:
        loop = asyncio.get_running_loop()
        until = min(loop.time() + self.model.queue_seconds, deadline)
        self._line[waiter] = None
        try:
            async with asyncio.timeout_at(until):
                seat = await waiter.seat
        except BaseException as error:
            # Who leaves may have been given a seat in the same moment.
            if waiter.seat.done() and not waiter.seat.cancelled() and (given := waiter.seat.result()) is not None:
                given.leave()
            if isinstance(error, TimeoutError):
                raise self._too_late(is_over=until == deadline) from None
            raise
        finally:
            self._line.pop(waiter, None)
        if seat is None:
            raise self.down()
        return seat

    def _too_late(self, *, is_over: bool) -> SignoffError:
        if is_over:
            return ModelTimedOut(f"The model took more than {self.model.timeouts.total_seconds:g} s.")
        if all(spot.state != "up" for spot in self._spots):
            return self.down()
        return ModelBusy(f"No turn came at the model {self.model.name} within {self.model.queue_seconds:g} s.")

    def down(self, message: str | None = None) -> ModelDown:
        """The error that tells that nobody can be asked, and when the first rest ends."""
        now = asyncio.get_running_loop().time()
        waits = [max(0.0, spot.returns_at - now) for spot in self._spots if spot.state == "resting"]
        wait = min(waits) if len(waits) == len(self._spots) else None
        return ModelDown(message or f"All endpoints of the model {self.model.name} rest.", retry_after_seconds=wait)

    def _find(self, key: int | None, tried: frozenset[Spot]) -> Seat | None:
        """A seat there is now, taken."""
        loads = [spot.load if spot.is_open and spot not in tried else None for spot in self._spots]
        if key is None:
            place = least_loaded(loads, self._turn)
        else:
            awake = [spot.load for spot in self._spots if spot.state != "resting"]
            place = nearest(key, [spot.key for spot in self._spots], loads, most_of(sum(awake), len(awake)))
        if place is None:
            return None
        self._turn = place + 1
        return Seat(self, self._spots[place])

    def _is_in_vain(self, tried: frozenset[Spot]) -> bool:
        return all(spot in tried or spot.state == "resting" for spot in self._spots)

    def _look(self) -> None:
        """Gives the seats there are to those who wait, the first one first."""
        given = list[_Waiter]()
        for waiter in self._line:
            if not any(spot.is_open for spot in self._spots):
                break
            if not waiter.seat.done() and (seat := self._find(waiter.key, waiter.tried)) is not None:
                waiter.seat.set_result(seat)
                given.append(waiter)
        for waiter in given:
            del self._line[waiter]

    def _dismiss(self) -> None:
        """Tells those who wait in vain."""
        for waiter in list(self._line):
            if not waiter.seat.done() and self._is_in_vain(waiter.tried):
                waiter.seat.set_result(None)
                del self._line[waiter]

    def left(self) -> None:
        """A seat is free."""
        self._look()

    def well(self, spot: Spot) -> None:
        """It answers."""
        spot.soft = spot.rests = 0
        if spot.state != "up":
            spot.state = "up"
            self._look()

    def failed(self, spot: Spot, error: SignoffError) -> None:
        """It did not; it rests, if that tells that it is not well."""
        if not self.rests:
            return
        spot.soft += is_soft(error)
        if not is_hard(error) and not (is_soft(error) and (spot.soft >= SOFT_FAILURES or spot.state == "waking")):
            return
        loop = asyncio.get_running_loop()
        spot.era += 1
        spot.soft, spot.rests, spot.state = 0, spot.rests + 1, "resting"
        seconds = rest_seconds(error, spot.rests)
        spot.returns_at = loop.time() + seconds
        loop.call_later(seconds, self._wake, spot, spot.era)
        self._dismiss()

    def _wake(self, spot: Spot, era: int) -> None:
        if (spot.era, spot.state) == (era, "resting"):
            spot.state = "waking"
            self._look()


State = Literal["up", "resting", "waking"]


class Sight(msgspec.Struct, frozen=True):
    """An endpoint: the model as it is there, the requests it works on for this process, and for how long it rests."""

    model: Model
    load: int
    state: State
    rests_seconds: float | None


class Spot:
    """One endpoint. After a rest it is `waking`: one request at a time goes there, until one is answered.

    `era` counts its rests, so that what was asked before one tells nothing about it after. `soft` failures in a row
    are those that a request may be to blame for.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name = spot_name(model)
        self.key = name_key(self.name)
        self.state: State = "up"
        self.load = 0
        self.era = 0
        self.soft = 0
        self.rests = 0
        self.returns_at = 0.0
        self.trials = 0

    @property
    def is_open(self) -> bool:
        """Whether it may be asked now."""
        if self.model.max_parallel is not None and self.load >= self.model.max_parallel:
            return False
        return self.state == "up" or (self.state == "waking" and not self.trials)


class Seat:
    """A request's place at an endpoint, taken as it is made."""

    def __init__(self, pool: Pool, spot: Spot) -> None:
        self.spot = spot
        self._pool = pool
        self._era = spot.era
        self._is_trial = spot.state == "waking"
        self._is_left = False
        spot.load += 1
        spot.trials += self._is_trial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def well(self) -> None:
        """The endpoint answers."""
        self._end_trial()
        if self._era == self.spot.era:
            self._pool.well(self.spot)

    def failed(self, error: SignoffError) -> None:
        """It answered with an error, or did not answer. One that tells of the request alone is an answer."""
        self._end_trial()
        if self._era != self.spot.era:
            return
        if isinstance(error, ModelAnswered) and not (is_hard(error) or is_soft(error)):
            self.well()
        else:
            self._pool.failed(self.spot, error)

    def leave(self) -> None:
        """Frees the place, once."""
        if self._is_left:
            return
        self._is_left = True
        self._end_trial()
        self.spot.load -= 1
        self._pool.left()

    def _end_trial(self) -> None:
        self.spot.trials -= self._is_trial
        self._is_trial = False


class _Waiter:
    """Somebody in the line. The seat is None once there is nothing to wait for."""

    def __init__(self, key: int | None, tried: frozenset[Spot]) -> None:
        self.key = key
        self.tried = tried
        self.seat: asyncio.Future[Seat | None] = asyncio.get_running_loop().create_future()


def spot_name(model: Model) -> str:
    """What tells an endpoint from the others of its model: its address and what it calls the model, or a process."""
    return model.name if model.url is None else f"{model.url} {model.upstream_model or ''}".strip()


def _spot(known: dict[str, Spot], model: Model) -> Spot:
    spot = known.get(spot_name(model)) or Spot(model)
    spot.model = model
    return spot
