"""The native API of jobs: `/api/jobs`."""

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.response import Stream

from signoff.core import sse
from signoff.core.api_paths import CHAT, PREDICT, normalize_route
from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES
from signoff.core.wire import format_time, job_as_json, parse_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings
from signoff.doors.http import Reply, cache_control_of, header, model_in, null, parse_choice, parse_digits, parse_json
from signoff.doors.queue import QueueRequest, answer_in_litestar
from signoff.doors.webhooks import DeliverTo, parse_webhook
from signoff.errors import BadRequest, JobNotFound, Unauthorized
from signoff.work.jobs.cancel import cancel
from signoff.work.jobs.query import (
    JobEvent,
    count_jobs,
    departed_callers,
    follow_events,
    get_job,
    list_events,
    list_jobs,
    wait_for_end,
)
from signoff.work.jobs.retry import retry_job
from signoff.work.pipelines.history import LoggedCall, RerunChange, rerun, run_log
from signoff.work.submit import submit

MAX_POLL_SECONDS = 300.0
MAX_PAGE = 1000


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/jobs`."""

    body: msgspec.Raw
    """JSON body of the request to the model."""
    target: str | None = None
    """Name of the model, prompt or pipeline; None for `model` in the body, else the default model."""
    path: str = CHAT
    """Endpoint of the request, such as `/v1/chat/completions` or `/predict`."""
    metadata: msgspec.Raw = msgspec.field(default_factory=null)
    """JSON value that is returned with the job."""
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    """Priority from 0 to 9; 9 goes first."""
    due_at: datetime | None = None
    """Time before which the job does not start; None for now."""
    deliver: DeliverTo | None = None
    """Webhook for the end of the job; None for none."""


async def accept_job(request: QueueRequest) -> Reply:
    """Commit a job."""
    new = parse_json(request.body, NewJob, "job")
    seconds = 0.0 if new.due_at is None else (_microseconds(new.due_at) - request.services.clock()) / 1_000_000
    ask = Ask(
        door="native",
        caller=request.caller,
        headers=request.scope["headers"],
        path=normalize_route(new.path),
        body=bytes(new.body),
        target=_target(new),
        metadata=bytes(new.metadata),
        priority=new.priority,
        idempotency_key=header(request.scope, b"idempotency-key"),
        due_seconds=max(0.0, seconds),
        webhook=parse_webhook(new.deliver),
        cache_control=cache_control_of(request.scope),
    )
    job = await submit(request.services, ask)
    headers = {"location": f"/api/jobs/{job.id}", "retry-after": "1", "x-signoff-cache": job.cache or "bypass"}
    return Reply(job_as_json(job), 202, headers)


@post("/", status_code=202, summary="Submit a job for later")
async def post_job(
    request: AnyRequest,
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    idempotency_key: Annotated[str | None, HeaderParameter(name="idempotency-key")] = None,
) -> Response[dict[str, Any]]:
    """Commit the job and return it; the header `location` has its path."""
    return await answer_in_litestar(request, services, door_settings, caller, accept_job)


@get("/", summary="List jobs")
async def get_jobs(
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    status: Annotated[str | None, QueryParameter(enum=STATUSES)] = None,
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
    total: FromQuery[bool] = False,
) -> dict[str, Any]:
    """Return a page of jobs, newest first. Pass `next` as `after` to get the next page.

    A page has fewer jobs than `limit` if they are large; it is the last one if `next` is null.

    With `total=1`, also return the number of jobs that match: at most 10000, with `total_is_capped` true beyond it.
    """
    wanted = None if status is None else parse_choice("status", status, STATUSES)
    job_filter = JobFilter(status=wanted, after_id=after, limit=limit, newest_first=True)
    jobs = await list_jobs(services, caller, job_filter)
    left_at = await departed_callers(services, jobs)
    page: dict[str, Any] = {
        "data": [job_as_json(job, left_at.get(job.id)) for job in jobs],
        "next": jobs[-1].id if jobs and jobs.may_continue else None,
    }
    if total:
        count = await count_jobs(services, caller, JobFilter(status=wanted))
        page |= {"total": count.number, "total_is_capped": count.is_capped}
    return page


@get("/{job_id:str}", summary="Get a job, or wait for its end")
async def show_job(
    services: InjectedServices,
    caller: InjectedCaller,
    job_id: FromPath[str],
    wait: Annotated[float, QueryParameter(ge=0, le=MAX_POLL_SECONDS)] = 0,
) -> Response[dict[str, Any]]:
    """Return the job; with `wait`, once it has ended or that many seconds have passed."""
    job = await (wait_for_end(services, caller, job_id, wait) if wait > 0 else get_job(services, caller, job_id))
    left_at = (await departed_callers(services, [job])).get(job.id)
    body = job_as_json(job, left_at)
    return Response(body, headers={"x-signoff-cache": job.cache or "bypass"})


@get("/{job_id:str}/events", summary="List the events of a job")
async def get_events(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[Any]:
    """Return the events of a job, oldest first.

    With `Accept: text/event-stream`, send them as they happen, those after `Last-Event-ID` only. The status 204 says
    that none follow, so that an `EventSource` does not connect again.
    """
    if "text/event-stream" in request.headers.get("accept", ""):
        job, last_seq = await get_job(services, caller, job_id), parse_digits(request.headers.get("last-event-id")) or 0
        if job.is_terminal and last_seq >= job.seq:
            return Response(None, status_code=204)
        pages = follow_events(services, caller, job_id, last_seq)
        return Stream(_sse_events(pages), media_type="text/event-stream", headers={"cache-control": "no-cache"})
    events = [msgspec.structs.asdict(event) for event in await list_events(services, caller, job_id)]
    return Response({"data": events})


@delete("/{job_id:str}", status_code=200, summary="Cancel a job")
async def delete_job(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Cancel the job and return it."""
    return job_as_json(await cancel(services, caller, job_id))


@post("/{job_id:str}/retry", status_code=202, summary="Retry a job that has ended")
async def post_retry(
    services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[dict[str, Any]]:
    """Submit a new job with the same request; its member `retry_of` has the id of the old one."""
    job = await retry_job(services, caller, job_id)
    return Response(job_as_json(job), headers={"location": f"/api/jobs/{job.id}", "retry-after": "1"})


@get("/{job_id:str}/run", summary="List the calls of a run")
async def get_run(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Return all calls of a pipeline's run, in the order of the pipeline's text."""
    return {"data": [_call_json(entry) for entry in await run_log(services, caller, job_id)]}


@post("/{job_id:str}/rerun", status_code=202, summary="Run a part of a run again")
async def post_rerun(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[dict[str, Any]]:
    """Submit a new run, which copies the results of all calls that do not depend on the change."""
    change = parse_json(await request.body(), RerunChange, "change of a run")
    job = await rerun(services, caller, job_id, change)
    return Response(job_as_json(job), headers={"location": f"/api/jobs/{job.id}", "retry-after": "1"})


def _call_json(entry: LoggedCall) -> dict[str, Any]:
    members = msgspec.structs.asdict(entry)
    times = {name: None if members[name] is None else format_time(members[name]) for name in ("began_at", "ended_at")}
    seconds = None if entry.began_at is None or entry.ended_at is None else (entry.ended_at - entry.began_at) / 1e6
    return members | times | {"seconds": seconds}


async def _sse_events(pages: AsyncGenerator[list[JobEvent]]) -> AsyncGenerator[bytes]:
    """Yield server-sent events for the events in `pages`, and a comment for an empty page.

    The stream ends when its caller loses the right to see the job; a new request gets the reason.
    """
    with contextlib.suppress(Unauthorized, JobNotFound):
        async with contextlib.aclosing(pages):
            async for page in pages:
                for event in page:
                    head = f"id: {event.seq}\nevent: {event.verb}\n".encode()
                    yield head + sse.event(msgspec.json.encode(event))
                if not page:
                    yield sse.comment(b"nothing new")


def _target(new: NewJob) -> str | None:
    """Return the name that `target` or the body gives. Raises BadRequest if they differ.

    Beside a `target`, the member `model` in the body of a prediction is not a name, but the model's own.
    """
    body_model = model_in(bytes(new.body))
    if None not in {new.target, body_model} and new.target != body_model and new.path != PREDICT:
        raise BadRequest(f"`target` is {new.target!r}, and `model` in the body {body_model!r}; remove one of them.")
    return body_model if new.target is None else new.target


def _microseconds(time: datetime) -> int:
    try:
        return parse_time(time)
    except ValueError as error:
        raise BadRequest(f"`due_at` is not valid: {error}") from None


router = Router(
    "/api/jobs",
    route_handlers=[post_job, get_jobs, show_job, get_events, delete_job, post_retry, get_run, post_rerun],
    tags=["jobs"],
)
