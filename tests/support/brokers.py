"""Brokers for tests, and a look at the queue between them."""

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
    """A broker that waits little between two attempts to connect."""
    return RabbitBroker(url, queue_name=queue, random_float=lambda: 0.2)


@contextlib.asynccontextmanager
async def started(broker: RabbitBroker, *, listening: bool = False) -> AsyncIterator[RabbitBroker]:
    """The broker, connected; it is closed with the block."""
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
    """A channel of somebody else's."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def waiting(url: str, queue: str) -> int:
    """How many messages are in the queue that nobody has taken."""
    async with channel(url) as other:
        return (await other.declare_queue(queue, passive=True)).declaration_result.message_count or 0


async def until_heard_by(listeners: int, other: AbstractChannel, queue: str) -> None:
    """Waits until so many listen to the queue."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (await other.declare_queue(queue, passive=True)).declaration_result.consumer_count != listeners:
            await asyncio.sleep(0.005)


async def drained(broker: Broker) -> int:
    """How many bells there are before it is quiet."""
    async with asyncio.timeout(WAIT_SECONDS):
        count = 0
        while await broker.poll(QUIET_SECONDS):
            count += 1
        return count


async def until(holds: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)
