"""Connections of the processes to the store and to each other: messages may be late, lost, duplicated or reordered."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa

from signoff.brokers.local import LocalBroker
from signoff.errors import Overloaded, SignoffError
from signoff.store import Listener, Topic
from simulation.clock import EPOCH_SECONDS, SECOND_US
from simulation.loop import SimLoop, World
from simulation.tables import Operation, Tables
from simulation.weather import Weather

REFUSED_AFTER_SECONDS = (0.001, 2.0, 30.0)


class Network:
    """The tables of the store, and the processes that are connected to them."""

    def __init__(self, world: World, outside: SimLoop, weather: Weather, tables: Tables, *, vague_news: bool) -> None:
        self.world = world
        self.outside = outside
        self.weather = weather
        self.tables = tables
        self.brokers: list[SimBroker] = []
        self.wires: list[Wire] = []
        self._vague_news = vague_news
        tables.listeners.append(self.publish_change)

    def now(self) -> int:
        """Return the time of the store's clock, which is correct, in microseconds since 1970."""
        return EPOCH_SECONDS * SECOND_US + round(self.world.now * SECOND_US)

    def publish_change(self, topic: Topic, name: str) -> None:
        """Notify every process of a change; each notification may arrive late, twice, or never."""
        change: tuple[Topic, str] = ("any", "") if self._vague_news else (topic, name)
        self.wires = [wire for wire in self.wires if not wire.loop.is_dead]
        for wire in self.wires:
            for _ in range(self._copies(self.weather.news_lost)):
                wire.loop.call_later(self.weather.latency(), wire.notify_listeners, *change)

    def send_wake_up(self, from_loop: SimLoop) -> None:
        """Send a wake-up to one of the listening processes; it may arrive late, twice, or never."""
        self.brokers = [broker for broker in self.brokers if not broker.loop.is_dead]
        for _ in range(self._copies(self.weather.bells_lost)):
            if self.brokers and not from_loop.is_dead:
                broker = self.world.random_float.choice(self.brokers)
                broker.loop.call_later(self.weather.latency(), broker.wake_local)

    def _copies(self, lost: float) -> int:
        return 0 if self.weather.happens(lost) else 2 if self.weather.happens(0.03) else 1


class Wire:
    """The connection of one process to the store."""

    def __init__(self, network: Network, loop: SimLoop) -> None:
        self.loop = loop
        self.is_cut = False
        self._network = network
        self._listeners: list[Listener] = []
        self._closed = False
        network.wires.append(self)

    def send(self, operation: Operation, *, writes: bool) -> asyncio.Future[Any]:
        """See `tables.Connection`."""
        future = self.loop.create_future()
        if self._closed:
            raise Overloaded("The store was closed.")
        if not self.loop.is_dead:
            latency = self._network.weather.store_latency()
            self._network.outside.call_later(latency, self._arrive, operation, future, writes)
        return future

    def listen(self, listener: Listener) -> None:
        """See `tables.Connection`."""
        self._listeners.append(listener)

    def notify_listeners(self, topic: Topic, name: str) -> None:
        """Pass a change notification to the listeners."""
        for listener in self._listeners:
            listener(topic, name)

    def close(self) -> None:
        """See `tables.Connection`."""
        self._closed = True

    def _arrive(self, operation: Operation, future: asyncio.Future[Any], writes: bool) -> None:
        """Run an operation that has reached the store, and send its result back.

        If its sender has left by now, the operation may as well have been cancelled before it was sent.
        """
        weather = self._network.weather
        has_left = future.cancelled() or self.loop.is_dead
        if has_left and weather.happens(0.5):
            return
        if self.is_cut or weather.happens(weather.store_refuses):
            error = Overloaded("The database did not take it in time.")
            self._reply(future, error, self._network.world.random_float.choice(REFUSED_AFTER_SECONDS))
            return
        is_lost = writes and weather.happens(weather.answers_lost)
        result = self._run(operation)
        reply = Overloaded("The connection broke, and nobody knows.") if is_lost else result
        self._reply(future, reply, weather.store_latency())

    def _run(self, operation: Operation) -> Any:
        try:
            return self._network.tables.run(operation, self._network.now())
        except (SignoffError, sa.exc.IntegrityError) as error:
            return error

    def _reply(self, future: asyncio.Future[Any], result: Any, seconds: float) -> None:
        if not future.done():
            self.loop.call_later(seconds, resolve, future, result)


class SimBroker(LocalBroker):
    """Broker whose wake-ups each go to one of the processes over an unreliable network."""

    def __init__(self, network: Network, loop: SimLoop) -> None:
        super().__init__()
        self.loop = loop
        self._network = network
        network.brokers.append(self)

    def notify(self, job_id: str, priority: int) -> None:
        """See `broker.Broker`."""
        self._network.send_wake_up(self.loop)


def resolve(future: asyncio.Future[Any], result: Any) -> None:
    """Set a result, or an error, if the caller still waits for it."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
