"""Fault of the disk: full for a while."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

from faults.nemesis import Impact
from faults.world import LEASE_SECONDS, World

BLOCK = bytes(256 * 1024)


async def fill_the_disk(world: World) -> Impact:
    """Fill the disk of the data for longer than a lease."""
    assert world.disk is not None
    jobs = await world.tables.leased_jobs()
    ballast = world.disk / "ballast"
    try:
        await asyncio.to_thread(_fill, ballast)
        await asyncio.sleep(LEASE_SECONDS * 1.5)
    finally:
        ballast.unlink(missing_ok=True)
    return Impact(jobs)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for block in (BLOCK, BLOCK[:4096], b"\0"):
            try:
                while file.write(block) == len(block):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
