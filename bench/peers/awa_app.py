"""Awa on PostgreSQL: jobs are committed rows, and a job is done when its row says so.

`python awa_app.py enqueue COUNT` and `latency COUNT` are as those of `celery_app.py`. `python awa_app.py migrate`
creates its tables, and `python awa_app.py work` is the worker, until SIGTERM.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

import awa
from producers import run_async

QUEUE = "bench"
WORKERS = 32
client = awa.AsyncClient(os.environ["DATABASE_URL"], max_connections=20)


@dataclass
class Echo:
    """Job that returns its text."""

    text: str


async def migrate() -> None:
    """Create the tables, with the storage that Awa recommends for new databases."""
    await client.migrate()
    await client.install_queue_storage()


async def work() -> None:
    """Perform jobs until SIGTERM."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)

    @client.task(Echo, queue=QUEUE)
    async def echo(job: awa.Job) -> str:
        return job.args.text

    await client.start([(QUEUE, WORKERS)])
    await done.wait()
    await client.shutdown()


async def enqueue(number: int) -> None:
    """Enqueue a job."""
    await client.insert(Echo(f"job {number}"), queue=QUEUE)


async def ask(number: int) -> None:
    """Enqueue a job, and wait until it is completed, for which Awa has only its row."""
    job = await client.insert(Echo(f"latency {number}"), queue=QUEUE)
    async with asyncio.timeout(30):
        while (await client.get_job(job.id)).state != awa.JobState.Completed:
            await asyncio.sleep(0.002)


async def nothing() -> None:
    """Do nothing: the client connects by itself."""


if __name__ == "__main__":
    match sys.argv[1]:
        case "migrate":
            asyncio.run(migrate())
        case "work":
            asyncio.run(work())
        case _:
            run_async(nothing, enqueue, ask, client.close)
