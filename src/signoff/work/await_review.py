"""Waiting for a review: a call that stays on the client's connection until a reviewer decides."""

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
    """Wait until the job has ended, and yield the chunks of its signed-off answer.

    Comments keep the connection of a stream open meanwhile, except where binary data may follow.
    Wait at most `ask.wait_seconds`, or `hold_seconds` of the settings. Raises ReviewPending after that time, while
    the job goes on, and JobFailed.
    """
    wait_seconds = services.rules.hold_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while not job.is_terminal:
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise pending_error(job)
        seconds = min(remaining, services.rules.keep_alive_seconds) if ask.stream else remaining
        job = await wait_until(services, job.id, seconds, lambda job: job.is_terminal)
        if ask.stream and job.path in KNOWN and not job.is_terminal:
            yield Chunk(sse.comment(b"waiting for a person"), event=True)
    if job.status == "fail":
        raise failure_of_job(job)
    for chunk in chunks_of_finished(job, stream=ask.stream, with_usage=with_usage):
        yield chunk


def chunks_of_finished(job: Job, *, stream: bool, with_usage: bool) -> list[Chunk]:
    """Return the stored answer of `job` as chunks, in the form of its path: events if `stream`, else one body."""
    body = convert_answer(job.path, job.response or b"null", job.target)
    binary = None if job.path in KNOWN else decode_binary(body)
    is_binary = binary is not None and binary.content_type != sse.CONTENT_TYPE
    return list(stream_events(job.path, body, with_usage=with_usage)) if stream and not is_binary else [Chunk(body)]
