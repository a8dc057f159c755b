"""Faults of the servers behind Signoff: PostgreSQL, RabbitMQ and Redis are stopped, killed, filled or emptied."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import asyncpg
from redis.asyncio import Redis

from faults.nemesis import Impact
from faults.servers import RabbitMQ, Server
from faults.world import LEASE_SECONDS, World

QUEUE = "faults"
OUTAGE_SECONDS = 1.5
PROGRESS_SECONDS = 10.0
WATERMARK = "0.4"  # the default of RabbitMQ
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename IS NOT NULL"
)
LOCK = "SELECT id FROM jobs WHERE status = 'bot' AND lease IS NULL LIMIT 50 FOR UPDATE SKIP LOCKED"


def rabbitmq_of(world: World) -> RabbitMQ:
    """Return the RabbitMQ node of the world."""
    assert world.rabbitmq is not None
    return world.rabbitmq


def redis_of(world: World) -> Server:
    """Return the Redis server of the world."""
    assert world.redis is not None
    return world.redis


def postgres_of(world: World) -> Server:
    """Return the PostgreSQL server of the world."""
    assert world.postgres is not None
    return world.postgres


async def kill_rabbitmq(world: World) -> Impact:
    """Kill RabbitMQ with SIGKILL until a job has gone on without it, then start it again with its data."""
    jobs = await world.tables.waiting()
    await rabbitmq_of(world).end(signal.SIGKILL)
    await world.wait_for_progress(jobs, PROGRESS_SECONDS)
    await rabbitmq_of(world).start()
    return Impact(jobs)


async def delete_the_queue(world: World) -> Impact:
    """Delete the queue while wake-ups are in it."""
    jobs = await world.tables.waiting()
    async with await aio_pika.connect(rabbitmq_of(world).url) as connection:
        await (await connection.channel()).queue_delete(QUEUE)
    await world.wait_for_progress(jobs, PROGRESS_SECONDS)
    return Impact(jobs)


async def close_the_connections_of_rabbitmq(world: World) -> Impact:
    """Close all connections to RabbitMQ, as an operator can."""
    jobs = await world.tables.waiting()
    await rabbitmq_of(world).control("close_all_connections", "faults")
    await world.wait_for_progress(jobs, PROGRESS_SECONDS)
    return Impact(jobs)


async def raise_the_memory_alarm(world: World) -> Impact:
    """Raise RabbitMQ's memory alarm, which blocks publishers."""
    jobs = await world.tables.waiting()
    await rabbitmq_of(world).control("set_vm_memory_high_watermark", "0")
    await world.wait_for_progress(jobs, PROGRESS_SECONDS)
    await rabbitmq_of(world).control("set_vm_memory_high_watermark", WATERMARK)
    return Impact(jobs)


async def kill_redis(world: World) -> Impact:
    """Kill Redis with SIGKILL, and start it again without its data."""
    jobs = await world.tables.waiting()
    await redis_of(world).end(signal.SIGKILL)
    await world.wait_for_progress(jobs, PROGRESS_SECONDS)
    await redis_of(world).start()
    return Impact(jobs)


async def flush_redis(world: World) -> Impact:
    """Delete all data in Redis."""
    jobs = await world.tables.waiting()
    async with Redis.from_url(redis_of(world).url) as client:
        await client.flushall()
    return Impact(jobs)


async def stop_postgres(world: World) -> Impact:
    """Stop PostgreSQL in the mode `immediate`, which acts like a crash, and start it again after a pause."""
    jobs = await world.tables.leased_jobs()
    await postgres_of(world).end(signal.SIGQUIT)
    await asyncio.sleep(OUTAGE_SECONDS * world.rng.random())
    await postgres_of(world).start()
    return Impact(jobs)


async def terminate_the_backends(world: World) -> Impact:
    """Terminate every connection to PostgreSQL at the server."""
    jobs = await world.tables.leased_jobs()
    async with _session(world) as session:
        await session.execute(TERMINATE)
    return Impact(jobs)


async def exhaust_the_connections(world: World) -> Impact:
    """Occupy all connections of PostgreSQL for a lease."""
    jobs = await world.tables.leased_jobs()
    async with contextlib.AsyncExitStack() as sessions:
        first = await sessions.enter_async_context(_session(world))
        await first.execute(TERMINATE)
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                await sessions.enter_async_context(_session(world))
        await asyncio.sleep(LEASE_SECONDS)
    return Impact(jobs)


async def hold_a_long_transaction(world: World) -> Impact:
    """Keep an old snapshot open, and lock jobs that are due, for longer than a lease."""
    async with _session(world) as old, old.transaction(isolation="repeatable_read"):
        await old.execute("SELECT count(*) FROM jobs")
        async with _session(world) as session, session.transaction():
            jobs = [row["id"] for row in await session.fetch(LOCK)] or await world.tables.leased_jobs()
            await asyncio.sleep(LEASE_SECONDS * 1.5)
    return Impact(jobs)


@contextlib.asynccontextmanager
async def _session(world: World) -> AsyncIterator[Any]:
    """Open a direct connection to PostgreSQL, without a proxy."""
    session: Any = await asyncpg.connect(postgres_of(world).url)
    try:
        yield session
    finally:
        await session.close()
