"""Faults of the network, in the proxies between processes and their servers: stalls, resets, half-open connections."""

from __future__ import annotations

import asyncio

from faults.nemesis import Impact
from faults.on_processes import wait_for_lapse
from faults.world import LEASE_SECONDS, World

STALL_SECONDS = LEASE_SECONDS * 1.5


async def reset_every_wire(world: World) -> Impact:
    """Reset every connection to every server at once."""
    jobs = await world.tables.leased_jobs()
    for proxy in world.all_proxies:
        proxy.cut()
    return Impact(jobs)


async def stall_every_wire(world: World) -> Impact:
    """Stall all traffic for longer than a lease, then pass everything on."""
    jobs = await world.tables.leased_jobs()
    for proxy in world.all_proxies:
        proxy.block()
    await asyncio.sleep(STALL_SECONDS)
    for proxy in world.all_proxies:
        proxy.unblock()
    return Impact(jobs)


async def cut_a_worker_off(world: World) -> Impact:
    """Stall the traffic between one worker and PostgreSQL until its leases run out, then pass everything on."""
    member = await world.busy_worker()
    jobs = await world.tables.leased_jobs(member.actor)
    proxy = world.proxies[member.name]["postgres"]
    proxy.block()
    try:
        return await wait_for_lapse(world, member, jobs)
    finally:
        proxy.unblock()


async def leave_a_worker_half_open(world: World) -> Impact:
    """Drop the connections of one worker at its servers, without notice to the worker."""
    member = await world.busy_worker()
    jobs = await world.tables.leased_jobs(member.actor)
    for proxy in world.proxies[member.name].values():
        proxy.strand()
    return await wait_for_lapse(world, member, jobs)
