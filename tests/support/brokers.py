"""RabbitMQ brokers for tests, and the state of the queue between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aio_pika
from aio_pika.abc import AbstractChannel

from signoff.broker import Broker
from signoff.brokers.rabbitmq import RabbitBroker

WAIT_SECONDS = 60.0
QUIET_SECONDS = 0.4


def a_rabbit(url: str, queue: str) -> RabbitBroker:
    """Return a broker with short pauses between attempts to connect."""
    return RabbitBroker(url, queue_name=queue, random_float=lambda: 0.2)


@contextlib.asynccontextmanager
async def started(broker: RabbitBroker, *, listening: bool = False) -> AsyncIterator[RabbitBroker]:
    """Yield the broker, connected, and close it after the block."""
    await broker.start()
    try:
        if listening:
            await broker.poll(0)
        await until(lambda: broker.is_connected)
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def channel(url: str) -> AsyncIterator[AbstractChannel]:
    """Yield a channel on a connection of its own."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def waiting(url: str, queue: str) -> int:
    """Return the number of messages in the queue that were not delivered."""
    async with channel(url) as other:
        return (await other.declare_queue(queue, passive=True)).declaration_result.message_count or 0


async def until_heard_by(listeners: int, other: AbstractChannel, queue: str) -> None:
    """Wait until the queue has this number of consumers."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (await other.declare_queue(queue, passive=True)).declaration_result.consumer_count != listeners:
            await asyncio.sleep(0.005)


async def drained(broker: Broker) -> int:
    """Return the number of wake-ups until none arrives any more."""
    async with asyncio.timeout(WAIT_SECONDS):
        count = 0
        while await broker.poll(QUIET_SECONDS):
            count += 1
        return count


async def until(holds: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until `holds` returns a true value; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)
