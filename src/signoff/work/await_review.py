"""Waiting for a review: a call that stays on the client's connection until a reviewer decides."""

import asyncio

from signoff.core import sse
from signoff.core.ask import Ask
from signoff.core.binary import decode_binary
from signoff.core.convert import convert_answer, keep_alive, stream_events
from signoff.core.endpoints import KNOWN
from signoff.core.job import Job
from signoff.engine import Sink
from signoff.work.admin.people import refresh
from signoff.work.jobs.query import failure_of_job, interrupted_error, pending_error, wait_in_request
from signoff.work.services import Services


async def await_review(services: Services, job: Job, ask: Ask, sink: Sink, *, with_usage: bool) -> bytes | None:
    """Wait until the job has ended, and return or send its signed-off answer: see `send_finished`.

    Comments keep the connection of a stream open meanwhile, except where binary data may follow.
    Wait at most `ask.wait_seconds`, or `hold_seconds` of the settings. Raises ReviewPending after that time, while
    the job goes on, `interrupted_error` if the server stops, Unauthorized if the caller's token is revoked meanwhile,
    and JobFailed.
    """
    wait_seconds = services.rules.hold_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while not job.is_terminal:
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise pending_error(job)
        seconds = min(remaining, services.rules.keep_alive_seconds)
        job = await wait_in_request(services, job.id, seconds, lambda job: job.is_terminal)
        if services.runtime.shutdown.is_interrupting and not job.is_terminal:
            raise interrupted_error(job)
        await refresh(services, ask.caller)
        if ask.stream and job.path in KNOWN and not job.is_terminal:
            await sink.send([keep_alive(job.path, b"waiting for a person")])
    if job.status == "fail":
        raise failure_of_job(job)
    return await send_finished(job, ask, sink, with_usage=with_usage)


async def send_finished(job: Job, ask: Ask, sink: Sink, *, with_usage: bool) -> bytes | None:
    """Return the stored answer of `job` in the form of its path; or send it as events if `ask` wants a stream."""
    body = convert_answer(job.path, job.response or b"null", job.target)
    binary = None if job.path in KNOWN else decode_binary(body)
    if not ask.stream or (binary is not None and binary.content_type != sse.CONTENT_TYPE):
        return body
    await sink.send(list(stream_events(job.path, body, with_usage=with_usage)))
    return None
