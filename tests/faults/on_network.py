"""Faults of the network, in the proxies between processes and their servers: stalls, resets, half-open connections."""

from __future__ import annotations

import asyncio

from faults.nemesis import Struck
from faults.on_processes import lapsed
from faults.world import LEASE_SECONDS, World

STALL_SECONDS = LEASE_SECONDS * 1.5


async def reset_every_wire(world: World) -> Struck:
    """Reset every connection to every server at once."""
    jobs = await world.tables.in_hand()
    for wire in world.every_wire:
        wire.cut()
    return Struck(jobs)


async def stall_every_wire(world: World) -> Struck:
    """Stall all traffic for longer than a lease, then pass everything on."""
    jobs = await world.tables.in_hand()
    for wire in world.every_wire:
        wire.block()
    await asyncio.sleep(STALL_SECONDS)
    for wire in world.every_wire:
        wire.unblock()
    return Struck(jobs)


async def cut_a_worker_off(world: World) -> Struck:
    """Stall the traffic between one worker and PostgreSQL until its leases run out, then pass everything on."""
    member = await world.busy_worker()
    jobs = await world.tables.in_hand(member.actor)
    wire = world.wires[member.name]["postgres"]
    wire.block()
    try:
        return await lapsed(world, member, jobs)
    finally:
        wire.unblock()


async def leave_a_worker_half_open(world: World) -> Struck:
    """Drop the connections of one worker at its servers, without notice to the worker."""
    member = await world.busy_worker()
    jobs = await world.tables.in_hand(member.actor)
    for wire in world.wires[member.name].values():
        wire.strand()
    return await lapsed(world, member, jobs)
