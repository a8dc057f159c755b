"""A program that writes to a store: `writes.py URL NAME JOBS` inserts JOBS jobs and settles the jobs that it can claim.

It prints `inserted ID` and `settled ID` when the store has acknowledged each, and `done` at the end.
"""

import asyncio
import itertools
import sys

from signoff.errors import Stale
from signoff.stores.sql import SqlStore
from support.stores import ANSWER, a_job, a_step

AT_ONCE = 8


async def main(url: str, name: str, jobs: int) -> None:
    """Open, write, close."""
    store = SqlStore(url)
    await store.start()
    numbers = iter(range(jobs))
    leases = (f"{name}-{number}" for number in itertools.count())
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(write(store, name, numbers, leases))
    await store.close()
    say("done", name)


async def write(store: SqlStore, name: str, numbers: "itertools.count[int]", leases: "itertools.count[str]") -> None:
    """Insert one job at a time and settle up to two, so that few jobs are left at the end."""
    for _ in numbers:
        job = await store.jobs.insert(a_job(name), actor=name)
        say("inserted", job.id)
        lease = next(leases)
        for claimed in await store.jobs.claim(actor=name, lease=lease, limit=2, lease_seconds=60):
            try:
                await store.jobs.transition(claimed.id, a_step("succeed", lease=lease, changes={"response": ANSWER}))
            except Stale as stale:
                sys.exit(f"somebody else settled a job that was ours: {stale}")
            say("settled", claimed.id)


def say(*words: str) -> None:
    """Print words for the parent process, and flush them."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
