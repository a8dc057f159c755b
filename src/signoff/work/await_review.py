"""Waiting for a review: a call that stays on the client's connection until a reviewer decides."""

import asyncio

from signoff.core import sse
from signoff.core.ask import Ask
from signoff.core.binary import decode_binary
from signoff.core.convert import keep_alive, stream_events
from signoff.core.edited_answer import in_form
from signoff.core.endpoints import KNOWN
from signoff.core.job import Job
from signoff.engine import Sink
from signoff.runtime.inflight import InflightCall
from signoff.work.admin.people import refresh
from signoff.work.jobs.query import failure_of_job, interrupted_error, pending_error, wait_in_request
from signoff.work.services import Services


async def await_review(
    services: Services, inflight: InflightCall, ask: Ask, sink: Sink, *, with_usage: bool
) -> bytes | None:
    """Wait until the job of the call has ended, and return or send its signed-off answer: see `send_finished`.

    Comments keep the connection of a stream open meanwhile, except where binary data may follow. The first one is sent
    as soon as the job is held, so that the client has the head of the response.
    Wait at most `ask.wait_seconds`, or `hold_seconds` of the settings, from now on; for a client that gets nothing
    meanwhile, and so may give up, from the arrival of its request on. Raises ReviewPending after that time, while the
    job goes on, `interrupted_error` if the server stops, Unauthorized if the caller's token is revoked meanwhile, and
    JobFailed.
    """
    clock, job = asyncio.get_running_loop().time, inflight.job
    is_commented = ask.stream and job.path in KNOWN
    wait_seconds = services.rules.hold_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = (clock() if is_commented else inflight.attempt.arrived_at) + wait_seconds
    # Before it is held, the job may still fail at once, with a status of its own.
    is_due = job.status == "human" or job.parked_at is not None
    while not job.is_terminal:
        remaining = deadline - clock()
        if remaining <= 0:
            raise pending_error(job)
        if is_commented and is_due:
            await sink.send([keep_alive(job.path, b"waiting for a person")])
        seconds, status = min(remaining, services.rules.keep_alive_seconds), job.status
        job = await wait_in_request(services, job.id, seconds, lambda job, status=status: job.status != status)
        if services.runtime.shutdown.is_interrupting and not job.is_terminal:
            raise interrupted_error(job)
        await refresh(services, ask.caller)
        is_due = True
    if job.status == "fail":
        raise failure_of_job(job)
    return await send_finished(job, ask, sink, with_usage=with_usage)


async def send_finished(job: Job, ask: Ask, sink: Sink, *, with_usage: bool) -> bytes | None:
    """Return the stored answer of `job` in the form of its path; or send it as events if `ask` wants a stream."""
    body = in_form(job, job.response)
    binary = None if job.path in KNOWN else decode_binary(body)
    if not ask.stream or (binary is not None and binary.content_type != sse.CONTENT_TYPE):
        return body
    await sink.send(list(stream_events(job.path, body, with_usage=with_usage)))
    return None
