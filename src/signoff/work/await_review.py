"""Sign off: a call that waits for a person's verdict, on the same connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.core.ask import Ask
from signoff.core.binary import unwrapped
from signoff.core.convert import shaped, streamed
from signoff.core.endpoints import KNOWN
from signoff.core.job import Job
from signoff.work.jobs.query import failure_of, still_held, wait_for
from signoff.work.services import Desk


async def signed_off(desk: Desk, job: Job, ask: Ask, *, with_usage: bool) -> AsyncIterator[Chunk]:
    """The signed-off answer; for a stream, comments keep the connection open meanwhile, where no sound may come.

    Raises ReviewPending when nobody looked in time (the job goes on), and JobFailed.
    """
    patience = desk.rules.hold_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = asyncio.get_running_loop().time() + patience
    while not job.is_terminal:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise still_held(job)
        seconds = min(left, desk.rules.keep_alive_seconds) if ask.stream else left
        job = await wait_for(desk, job.id, seconds, lambda job: job.is_terminal)
        if ask.stream and job.path in KNOWN and not job.is_terminal:
            yield Chunk(sse.comment(b"waiting for a person"), event=True)
    if job.status == "fail":
        raise failure_of(job)
    for chunk in chunks_of_ended(job, stream=ask.stream, with_usage=with_usage):
        yield chunk


def chunks_of_ended(job: Job, *, stream: bool, with_usage: bool) -> list[Chunk]:
    """The answer of a job that has one, in the form in which it is asked for now."""
    body = shaped(job.path, job.response or b"null", job.target)
    parcel = None if job.path in KNOWN else unwrapped(body)
    is_sound = parcel is not None and parcel.content_type != sse.KIND
    return list(streamed(job.path, body, with_usage=with_usage)) if stream and not is_sound else [Chunk(body)]
