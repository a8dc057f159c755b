"""Sign off: a call that waits for a person's verdict, on the same connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.core.ask import Ask
from signoff.core.binary import decode_binary
from signoff.core.convert import convert_answer, stream_events
from signoff.core.endpoints import KNOWN
from signoff.core.job import Job
from signoff.work.jobs.query import failure_of_job, pending_error, wait_until
from signoff.work.services import Services


async def await_review(services: Services, job: Job, ask: Ask, *, with_usage: bool) -> AsyncIterator[Chunk]:
    """The signed-off answer; for a stream, comments keep the connection open meanwhile, where no sound may come.

    Raises ReviewPending when nobody looked in time (the job goes on), and JobFailed.
    """
    patience = services.rules.hold_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = asyncio.get_running_loop().time() + patience
    while not job.is_terminal:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise pending_error(job)
        seconds = min(left, services.rules.keep_alive_seconds) if ask.stream else left
        job = await wait_until(services, job.id, seconds, lambda job: job.is_terminal)
        if ask.stream and job.path in KNOWN and not job.is_terminal:
            yield Chunk(sse.comment(b"waiting for a person"), event=True)
    if job.status == "fail":
        raise failure_of_job(job)
    for chunk in chunks_of_finished(job, stream=ask.stream, with_usage=with_usage):
        yield chunk


def chunks_of_finished(job: Job, *, stream: bool, with_usage: bool) -> list[Chunk]:
    """The answer of a job that has one, in the form in which it is asked for now."""
    body = convert_answer(job.path, job.response or b"null", job.target)
    binary = None if job.path in KNOWN else decode_binary(body)
    is_sound = binary is not None and binary.content_type != sse.CONTENT_TYPE
    return list(stream_events(job.path, body, with_usage=with_usage)) if stream and not is_sound else [Chunk(body)]
