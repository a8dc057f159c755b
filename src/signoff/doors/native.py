"""The native job door: `/api/jobs`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.response import Stream

from signoff.core import sse
from signoff.core.ask import Ask
from signoff.core.delivery import WebhookTarget
from signoff.core.endpoints import CHAT
from signoff.core.filters import JobFilter
from signoff.core.job import Event, Status
from signoff.core.signing import Secret
from signoff.core.wire import format_time, job_as_json, parse_time
from signoff.doors.http import InjectedCaller, InjectedServices, cache_control_of, decoded, number_in, scope_of
from signoff.errors import BadRequest
from signoff.work.jobs.cancel import cancel
from signoff.work.jobs.query import follow_events, get_job, list_events, list_jobs, wait_for_end
from signoff.work.jobs.retry import retry_job
from signoff.work.pipelines.history import LoggedCall, RerunChange, rerun, run_log
from signoff.work.submit import submit

LONGEST_WAIT_SECONDS = 300.0
MAX_PAGE = 1000


class DeliverTo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to tell of the end. `secret` signs the message; None for the deployment's own."""

    url: str
    secret: str | None = None


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked. `target` is None for the default model; `due_at` not before then."""

    body: msgspec.Raw
    target: str | None = None
    path: str = CHAT
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    due_at: datetime | None = None
    deliver: DeliverTo | None = None


@post("/", status_code=202, summary="Submit a job for later")
async def create(
    request: Request[Any, Any, Any],
    services: InjectedServices,
    caller: InjectedCaller,
    idempotency_key: Annotated[str | None, HeaderParameter(name="idempotency-key")] = None,
) -> Response[dict[str, Any]]:
    """Commits the job, and says where to look for its answer."""
    new = decoded(await request.body(), NewJob, "This is not a job")
    seconds = 0.0 if new.due_at is None else (_microseconds(new.due_at) - services.clock()) / 1_000_000
    ask = Ask(
        door="native",
        caller=caller,
        path=new.path,
        body=bytes(new.body),
        target=new.target,
        metadata=bytes(new.metadata),
        priority=new.priority,
        idempotency_key=idempotency_key,
        due_seconds=max(0.0, seconds),
        webhook=None if new.deliver is None else _hook(new.deliver),
        cache_control=cache_control_of(scope_of(request)),
    )
    job = await submit(services, ask)
    headers = {"location": f"/api/jobs/{job.id}", "retry-after": "1", "x-signoff-cache": job.cache or "bypass"}
    return Response(job_as_json(job), headers=headers)


@get("/", summary="List jobs")
async def listed(
    services: InjectedServices,
    caller: InjectedCaller,
    status: FromQuery[Status | None] = None,
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """A page of jobs, newest first; `next` is the cursor of the following one."""
    which = JobFilter(status=status, after_id=after, limit=limit, newest_first=True)
    jobs, total = await list_jobs(services, caller, which)
    last = jobs[-1].id if len(jobs) == limit else None
    return {"data": [job_as_json(job) for job in jobs], "total": total, "next": last}


@get("/{job_id:str}", summary="Look at a job, or wait for its end")
async def one(
    services: InjectedServices,
    caller: InjectedCaller,
    job_id: FromPath[str],
    wait: Annotated[float, QueryParameter(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
) -> Response[dict[str, Any]]:
    """The job; with `wait`, as soon as it has ended or that many seconds have passed."""
    job = await (wait_for_end(services, caller, job_id, wait) if wait > 0 else get_job(services, caller, job_id))
    return Response(job_as_json(job), headers={"x-signoff-cache": job.cache or "bypass"})


@get("/{job_id:str}/events", summary="What happened to a job")
async def events(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[Any]:
    """Every move, oldest first; with `Accept: text/event-stream` as they happen, from `Last-Event-ID` on."""
    if "text/event-stream" in request.headers.get("accept", ""):
        await get_job(services, caller, job_id)
        following = follow_events(services, caller, job_id, number_in(request.headers.get("last-event-id")) or 0)
        return Stream(_told(following), media_type="text/event-stream", headers={"cache-control": "no-cache"})
    listed = [msgspec.structs.asdict(event) for event in await list_events(services, caller, job_id)]
    return Response({"data": listed})


@delete("/{job_id:str}", status_code=200, summary="Cancel a job")
async def cancelled(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """The cancelled job."""
    return job_as_json(await cancel(services, caller, job_id))


@post("/{job_id:str}/retry", status_code=202, summary="Ask a job that has ended once more")
async def again(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> Response[dict[str, Any]]:
    """A new job, which names the old one in `retry_of`."""
    job = await retry_job(services, caller, job_id)
    return Response(job_as_json(job), headers={"location": f"/api/jobs/{job.id}", "retry-after": "1"})


@get("/{job_id:str}/run", summary="What the calls of a run gave")
async def run(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Every call of a pipeline's run, in the order of its text."""
    return {"data": [_as_entry(entry) for entry in await run_log(services, caller, job_id)]}


@post("/{job_id:str}/rerun", status_code=202, summary="Run a part of a run again")
async def partly(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[dict[str, Any]]:
    """A new run, which has already what does not depend on the change."""
    change = decoded(await request.body(), RerunChange, "This is no change")
    job = await rerun(services, caller, job_id, change)
    return Response(job_as_json(job), headers={"location": f"/api/jobs/{job.id}", "retry-after": "1"})


def _as_entry(entry: LoggedCall) -> dict[str, Any]:
    told = msgspec.structs.asdict(entry)
    times = {name: None if told[name] is None else format_time(told[name]) for name in ("began_at", "ended_at")}
    seconds = None if entry.began_at is None or entry.ended_at is None else (entry.ended_at - entry.began_at) / 1e6
    return told | times | {"seconds": seconds}


async def _told(following: AsyncGenerator[list[Event]]) -> AsyncGenerator[bytes]:
    """Events as server-sent ones; a comment where there are none."""
    async with contextlib.aclosing(following) as pages:
        async for page in pages:
            for event in page:
                head = f"id: {event.seq}\nevent: {event.verb}\n".encode()
                yield head + sse.event(msgspec.json.encode(event))
            if not page:
                yield sse.comment(b"nothing new")


def _hook(wanted: DeliverTo) -> WebhookTarget:
    try:
        return WebhookTarget(url=wanted.url, secret=None if wanted.secret is None else Secret(wanted.secret))
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _microseconds(time: datetime) -> int:
    try:
        return parse_time(time)
    except ValueError as error:
        raise BadRequest(f"due_at: {error}") from None


router = Router("/api/jobs", route_handlers=[create, listed, one, events, cancelled, again, run, partly], tags=["jobs"])
