"""Waiting for a review: a call that stays on the client's connection until a reviewer decides."""

import asyncio
import math

from signoff.core import sse
from signoff.core.api_paths import KNOWN
from signoff.core.ask import Ask
from signoff.core.binary import decode_binary
from signoff.core.dialects.convert import keep_alive, stream_events
from signoff.core.dialects.edited_answer import in_form
from signoff.core.job import Job
from signoff.engine import Sink
from signoff.runtime.inflight import InflightCall
from signoff.runtime.watcher import ChangeEvent
from signoff.work.admin.people import refresh
from signoff.work.jobs.query import failure_of_job, interrupted_error, load_job, pending_error
from signoff.work.rejoin import forget_caller, waiting
from signoff.work.services import Services

# Interval of comments while an answer is held. Many clients give up on a stream that is silent for a few seconds, and
# do not retry once it has begun.
COMMENT_SECONDS = 1.0


async def await_review(
    services: Services, inflight: InflightCall, ask: Ask, sink: Sink, *, with_usage: bool
) -> bytes | None:
    """Wait until the job of the call has ended, and return or send its signed-off answer: see `send_finished`.

    Wait at most `ask.wait_seconds`, or `stream_hold_seconds` of the settings, from now on. For a client that gets
    nothing meanwhile, and so may give up, it is `hold_seconds`, from the arrival of its request on.

    Raises ReviewPending after that time, while the job goes on, `interrupted_error` if the server stops, Unauthorized
    if the caller's token is revoked meanwhile, and JobFailed.
    """
    clock, job = asyncio.get_running_loop().time, inflight.job
    rules, is_commented = services.rules, _has_comments(job, ask)
    default_seconds = rules.stream_hold_seconds if is_commented else rules.hold_seconds
    wait_seconds = default_seconds if ask.wait_seconds is None else ask.wait_seconds
    deadline = (clock() if is_commented else inflight.attempt.arrived_at) + wait_seconds
    with waiting(services, job), services.runtime.watcher.watch(job.id) as change:
        change.seq = job.seq
        while not job.is_terminal:
            await _wait_for_change(services, job, ask, sink, change, deadline)
            change.clear()
            job = await load_job(services, job.id)
            change.seq = job.seq
    forget_caller(services, job)
    if job.status == "fail":
        raise failure_of_job(job)
    return await send_finished(job, ask, sink, with_usage=with_usage)


def _has_comments(job: Job, ask: Ask) -> bool:
    """Return True if the client reads a stream; where binary data may follow, it is not known yet."""
    return ask.stream and job.path in KNOWN


async def _wait_for_change(
    services: Services, job: Job, ask: Ask, sink: Sink, change: ChangeEvent, deadline: float
) -> None:
    """Wait until `job` may have changed. Comments keep the connection of a stream open while the job is held.

    The first one is sent at once, so that the client has the head of the response.
    """
    # Before it is held, the job may still fail at once, with a status of its own.
    is_held = job.status == "human" or job.parked_at is not None
    is_commented = is_held and _has_comments(job, ask)
    interval = min(services.rules.keep_alive_seconds, COMMENT_SECONDS if is_commented else math.inf)
    while not change.is_set():
        if services.runtime.shutdown.is_interrupting:
            raise interrupted_error(job)
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise pending_error(job)
        if is_commented:
            await sink.send([keep_alive(job.path, b"waiting for a person")])
        try:
            async with asyncio.timeout(min(remaining, interval)):
                await change.wait()
        except TimeoutError:
            continue  # rights that are lost meanwhile end the call: see `OpenCalls`
        except asyncio.CancelledError:
            if services.runtime.shutdown.take_cancellation():
                raise interrupted_error(job) from None
            raise
    await refresh(services, ask.caller)


async def send_finished(job: Job, ask: Ask, sink: Sink, *, with_usage: bool) -> bytes | None:
    """Return the stored answer of `job` in the form of its path; or send it as events if `ask` wants a stream."""
    body = in_form(job, job.response)
    binary = None if job.path in KNOWN else decode_binary(body)
    if not ask.stream or (binary is not None and binary.content_type != sse.CONTENT_TYPE):
        return body
    await sink.send(list(stream_events(job.path, body, with_usage=with_usage)))
    return None
