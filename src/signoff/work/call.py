"""Waiting calls (the `now` lane): the client waits for the answer, and for the review of it where there is one."""

import asyncio
from functools import partial

import msgspec

from signoff.core.api_paths import KNOWN
from signoff.core.ask import Ask
from signoff.core.headers import comparable_headers
from signoff.core.job import CALLER_LEFT, INTERRUPTED, Job
from signoff.core.upstream_objects import is_stateless
from signoff.engine import EventSink, Sink
from signoff.errors import Interrupted, JobFailed, ReviewPending, SignoffError
from signoff.runtime.attempt import Attempt
from signoff.runtime.broadcast import Broadcast
from signoff.runtime.inflight import InflightCall
from signoff.work.admit import admit, parse_sampling
from signoff.work.attempt import answer_of, run_attempt
from signoff.work.await_review import await_review, send_finished
from signoff.work.inference.caching import lookup_answer
from signoff.work.inference.ownership import CheckedSink
from signoff.work.inference.reserve import release_reservation, reserve
from signoff.work.jobs.query import caller_error, failure_of_job, interrupted_error, load_job
from signoff.work.perform import perform
from signoff.work.record import CallRecorder, begin_record, is_caller_left, record_hit
from signoff.work.rejoin import find_left_job, record_departure
from signoff.work.services import Services
from signoff.work.submit import check_same


class WaitingCall(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting call that has begun."""

    ask: Ask
    """The request of the client."""
    inflight: InflightCall
    """The state of the call in this process; its attempt changes while the call runs."""
    with_usage: bool
    """Send an event with the usage at the end of a stream."""
    is_joined: bool = False
    """The job is that of another call, and this call waits for its end."""
    shared: Broadcast | None = None
    """The answer that several calls of this process read; None if this call shares none."""
    is_cached: bool = False
    """The job has ended with an answer from the cache."""

    @property
    def job(self) -> Job:
        """The job as far as this process knows it."""
        return self.inflight.job


async def begin_call(services: Services, ask: Ask, *, with_usage: bool = False) -> WaitingCall:
    """Start the call of `ask`; wait for its answer with `answer_call`.

    The job is stored first where it must survive a restart: with an idempotency key, if it may be held, or if it is a
    run. A request that equals a running one may join that job, and so does that of a caller who has left its job.
    Raises what `admit` and `reserve` raise, and KeyReused.

    Args:
        services: The dependencies.
        ask: The request.
        with_usage: Send an event with the usage at the end of a stream.
    """
    job = await admit(services, ask)
    if job.cache_key is not None and (hit := await lookup_answer(services, ask, job)) is not None:
        return await _begin_cached(services, ask, hit, with_usage=with_usage)
    if job.idempotency_key is not None:
        return await _begin_shared(services, ask, job, with_usage=with_usage)
    if job.fingerprint is not None and (left := await find_left_job(services, ask, job)) is not None:
        return WaitingCall(ask=ask, inflight=_inflight(ask, left), with_usage=with_usage, is_joined=True)
    if _may_coalesce(ask, job):
        model = await services.caches.models.find(job.target)
        coalesces = services.rules.coalesce if model.coalesce is None else model.coalesce
        if coalesces and _is_repeatable(ask, job):
            return await _begin_coalesced(
                services, ask, job, services.caches.models.version_of(model), with_usage=with_usage
            )
    return WaitingCall(ask=ask, inflight=await _reserve_and_record(services, ask, job), with_usage=with_usage)


def _inflight(ask: Ask, job: Job) -> InflightCall:
    return InflightCall(Attempt(job, stream=ask.stream), actor=ask.caller.actor)


async def _reserve_and_record(services: Services, ask: Ask, job: Job) -> InflightCall:
    """Reserve under the limits of the job, and record its start.

    The reservation is released if a job with the same idempotency key exists, which the result then holds.
    """
    attempt = Attempt(job, stream=ask.stream)
    await reserve(services, attempt)
    is_ours = False
    try:
        inflight = await begin_record(services, attempt, ask.caller.actor)
        is_ours = inflight.job.id == job.id
    finally:
        if not is_ours:
            await release_reservation(services, attempt, reached_model=False)
    return inflight


async def lookup_cached(services: Services, ask: Ask) -> Job | None:
    """Return the job of `ask` with its answer from the cache; None if the cache has none.

    Store nothing and call no model. Raises what `admit` raises.
    """
    return await lookup_answer(services, ask, await admit(services, ask))


async def _begin_cached(services: Services, ask: Ask, hit: Job, *, with_usage: bool) -> WaitingCall:
    """Return the call that the cache has answered, unless a job with the same idempotency key exists."""
    stored = await record_hit(services, hit, ask.caller.actor)
    inflight = _inflight(ask, stored)
    if stored.id == hit.id:
        return WaitingCall(ask=ask, inflight=inflight, with_usage=with_usage, is_cached=True)
    check_same(stored, hit)
    shared = services.runtime.inflight_calls.shared(stored.id)
    return WaitingCall(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)


def _may_coalesce(ask: Ask, job: Job) -> bool:
    """Return True if equal requests may get the same answer, judged without reading the body."""
    if job.policy.may_hold or job.path not in KNOWN or job.pipeline_id is not None:
        return False
    return not ask.cache_control.no_store and not ask.cache_control.no_cache


def _is_repeatable(ask: Ask, job: Job) -> bool:
    """Return True if the sampling parameters of the body make the answer repeatable."""
    # Rendering a prompt replaces the body, and then the sampling parameters of the request do not apply.
    if ask.sampling is not None and job.body is ask.body:
        return ask.sampling.is_repeatable
    return parse_sampling(job.body).is_repeatable


async def _begin_coalesced(services: Services, ask: Ask, job: Job, version: str, *, with_usage: bool) -> WaitingCall:
    """Join a running call with an equal request, or start one that others may join.

    Requests are equal if user, upstream key, target, version of the model, path, body and passed headers are.
    """
    request = (job.user_id, job.key_id, job.target, version, job.path, job.body, comparable_headers(job.headers))
    if (existing := services.runtime.inflight_calls.find_coalesced(request)) is not None:
        inflight = _inflight(ask, existing)
        shared = services.runtime.inflight_calls.shared(existing.id)
        return WaitingCall(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)
    services.runtime.inflight_calls.coalesce(request, job)
    try:
        call = await _begin_shared(services, ask, job, with_usage=with_usage)
    except BaseException:
        services.runtime.inflight_calls.stop_coalescing(request, job)
        raise
    if call.shared is not None and call.shared.task is not None:
        call.shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.stop_coalescing(request, job))
    return call


async def _begin_shared(services: Services, ask: Ask, job: Job, *, with_usage: bool) -> WaitingCall:
    """Start the call in a task of its own, so that others may join it and its first caller may leave.

    Join the existing job instead if there is one with the same idempotency key.
    """
    shared = Broadcast()
    services.runtime.inflight_calls.share(job.id, shared)
    try:
        inflight = await _reserve_and_record(services, ask, job)
    except BaseException:
        services.runtime.inflight_calls.unshare(job.id)
        shared.fail(caller_error(job, CALLER_LEFT))
        raise
    if inflight.job.id != job.id:
        services.runtime.inflight_calls.unshare(job.id)
        check_same(inflight.job, job)
        shared = services.runtime.inflight_calls.shared(inflight.job.id)
        return WaitingCall(ask=ask, inflight=inflight, with_usage=with_usage, is_joined=True, shared=shared)
    call = WaitingCall(ask=ask, inflight=inflight, with_usage=with_usage, shared=shared)
    shared.task = services.runtime.background.spawn(
        shared.fill(partial(_serve, services, call), caller_error(job, INTERRUPTED))
    )
    shared.task.add_done_callback(lambda _: services.runtime.inflight_calls.unshare(job.id))
    return call


async def answer_call(services: Services, call: WaitingCall, sink: Sink) -> bytes | None:
    """Return the whole answer of the call; or send its events to `sink` as they come, and return None.

    A held answer follows once it is signed off. The last event follows when the job is settled. Cancelling the task
    while the model works cancels the job, unless other calls wait for it too; a held job goes on, and an equal call of
    the same caller gets its answer.
    Raises ModelFailed or a subclass, JobFailed, ReviewPending, Interrupted if the server stops, and Unauthorized once
    the caller's token is revoked.
    """
    if call.is_cached:
        return await send_finished(call.job, call.ask, sink, with_usage=call.with_usage)
    open_call = services.runtime.open_calls.add(call.ask.caller)
    try:
        if call.is_joined or call.shared is not None:
            return await _follow_shared(services, call, sink)
        body = await _serve(services, call, sink)
        if not _awaits_person(call, body):
            return body
        return await await_review(services, call.inflight, call.ask, sink, with_usage=call.with_usage)
    except asyncio.CancelledError:
        if (revoked := open_call.take_cancellation()) is not None:
            raise revoked from None
        is_interrupted = services.runtime.shutdown.take_cancellation()
        await record_departure(services, call.job)
        if is_interrupted:
            raise interrupted_error(call.job) from None
        raise
    except (Interrupted, ReviewPending):
        await record_departure(services, call.job)
        raise
    finally:
        services.runtime.open_calls.drop(open_call)


async def whole_answer(services: Services, call: WaitingCall) -> bytes:
    """Return the answer as one JSON body, also if the model sent it as a stream. Raises as `answer_call`."""
    events = EventSink()
    body = await answer_call(services, call, events)
    if body is not None:
        return body
    return answer_of(call.job, None, events.received).body


async def _follow_shared(services: Services, call: WaitingCall, sink: Sink) -> bytes | None:
    """Return or send the answer that all callers of one job get; start the call over if the job lost its callers."""
    inflight = call.inflight
    while not call.is_cached:
        try:
            return await _read_together(services, call, sink)
        except JobFailed as failure:
            if not (call.is_joined and _should_start_over(call, failure)):
                raise
        call = await begin_call(services, call.ask, with_usage=call.with_usage)
        inflight.attempt = call.inflight.attempt  # the door names the job of `inflight` to the client
    return await send_finished(call.job, call.ask, sink, with_usage=call.with_usage)


def _should_start_over(call: WaitingCall, failure: JobFailed) -> bool:
    """Return True if the job ended because its callers left or its server stopped."""
    return is_caller_left(failure) or (call.shared is None and failure.code == INTERRUPTED.code)


async def _read_together(services: Services, call: WaitingCall, sink: Sink) -> bytes | None:
    """Return or send the shared answer, then that of the review; wait for a stored job that runs in another process."""
    body = None
    if call.shared is not None:
        body = await call.shared.read(sink)
    elif not call.is_joined:
        body = await _serve(services, call, sink)
    if (call.is_joined and call.shared is None) or _awaits_person(call, body):
        return await await_review(services, call.inflight, call.ask, sink, with_usage=call.with_usage)
    return body


def _awaits_person(call: WaitingCall, body: bytes | None) -> bool:
    """Return True if the caller waits for a review: the job may be held, is held, or is a run that was parked."""
    job, shared = call.job, call.shared
    if job.policy.may_hold or job.status == "human":
        return True
    return body is None and (job.pipeline_id is not None or (shared is not None and shared.is_empty))


async def _serve(services: Services, call: WaitingCall, sink: Sink) -> bytes | None:
    """Ask the model, and return its answer, or send its events at once; return nothing if the job may be held."""
    attempt, may_hold = call.inflight.attempt, call.job.policy.may_hold
    needs_check = not is_stateless(call.job.path)
    attempt.sink = None if may_hold else CheckedSink(services, call.job, sink) if needs_check else sink
    try:
        settled = await run_attempt(services, attempt, CallRecorder(services, call.inflight), perform)
        if settled is None:
            raise failure_of_job(await load_job(services, call.job.id))
        if isinstance(attempt.outcome, SignoffError):
            raise _taken_failure(attempt)
        attempt.job = settled
        if may_hold or attempt.is_parked or settled.status == "human":
            return None
        await attempt.send_last()
        return attempt.body
    finally:
        attempt.sink = None  # it refers to the call, and would keep the answer until the next garbage collection


def _taken_failure(attempt: Attempt) -> SignoffError:
    """Return the error of the attempt, and remove it there: once raised, it would refer to itself by its frames."""
    failure, attempt.outcome = attempt.outcome, None
    assert isinstance(failure, SignoffError)  # noqa: S101 -- the caller has checked it
    return failure
