"""The page of one job: why it has its status, its timeline, its request and answer, and the calls of a run."""

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.dialects.transcript import answer_details, transcript
from signoff.core.job import Job
from signoff.dashboard.content import MAX_SHOWN, answer_of_job, cut
from signoff.dashboard.jobs import state_of
from signoff.dashboard.shell import JOBS, address_of, page, redirect
from signoff.dashboard.timeline import reason_of_state, timeline
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.work.jobs.cancel import cancel
from signoff.work.jobs.query import get_job, list_events
from signoff.work.jobs.retry import retry_job
from signoff.work.pipelines.history import LoggedCall, run_log
from signoff.work.services import Services

PATH = "/dashboard/jobs/{job_id:str}"


class PlacedCall(msgspec.Struct, frozen=True):
    """Call of a run with its place on the axis of time."""

    call: LoggedCall
    """The call."""
    depth: int
    """Depth in the tree; 1 for the calls of the run itself."""
    start: float
    """Start, from 0 to 300."""
    width: float
    """Duration on the same scale."""


@get(PATH, include_in_schema=False, media_type=MediaType.HTML)
async def show_job(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Template:
    """Show the job."""
    job = await get_job(services, caller, job_id)
    events, calls = await list_events(services, caller, job_id), await _calls(services, caller, job)
    whole_input, details = transcript(job.body), answer_details(job.response)
    length = sum(len(entry.text) for entry in whole_input) + len(answer_of_job(job))
    return page(
        request,
        services,
        caller,
        "job.html",
        JOBS.name,
        job=job,
        state=state_of(job),
        reason=reason_of_state(job, services.clock()),
        entries=timeline(events),
        input=cut(whole_input),
        answer=answer_of_job(job)[:MAX_SHOWN],
        details=details and details[:MAX_SHOWN],
        is_cut=length > MAX_SHOWN,
        bars=_bars(calls),
        run_seconds=_span(calls),
        curl=_curl(request, job),
        may_cancel=not job.is_terminal,
        may_repeat=job.is_terminal and job.parent_id is None and not job.is_consultation,
    )


@post(f"{PATH}/cancel", include_in_schema=False, status_code=303)
async def post_cancel(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Cancel the job, and show it."""
    check_same_site(scope_of(request))
    return _to_job(await cancel(services, caller, job_id))


@post(f"{PATH}/repeat", include_in_schema=False, status_code=303)
async def post_repeat(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Send the request of the job again, and show the new job."""
    check_same_site(scope_of(request))
    return _to_job(await retry_job(services, caller, job_id))


def _to_job(job: Job) -> Response[str]:
    return redirect(f"{JOBS.path}/{job.id}")


async def _calls(services: Services, caller: Caller, job: Job) -> list[LoggedCall]:
    return [] if job.pipeline_id is None else await run_log(services, caller, job.id)


def _span(calls: list[LoggedCall]) -> int:
    """Return the time from the first start to the last end, in microseconds."""
    starts = [call.began_at for call in calls if call.began_at is not None]
    ends = [call.ended_at for call in calls if call.ended_at is not None]
    return max(ends, default=0) - min(starts, default=0) if ends else 0


def _bars(calls: list[LoggedCall]) -> list[PlacedCall]:
    """Return the calls with their bars on an axis of 300 units."""
    origin, span = min((call.began_at for call in calls if call.began_at is not None), default=0), _span(calls) or 1
    bars = list[PlacedCall]()
    for call in calls:
        start = 0.0 if call.began_at is None else (call.began_at - origin) * 300 / span
        length = 0.0 if call.began_at is None or call.ended_at is None else (call.ended_at - call.began_at) * 300 / span
        bars.append(PlacedCall(call, call.node.count("."), round(min(start, 298), 1), round(max(length, 2), 1)))
    return bars


def _curl(request: AnyRequest, job: Job) -> str | None:
    """Return a command that sends the request again; None if its route is not below `/v1/`, or its body too long."""
    if not job.path.startswith("/v1/") or len(job.body) > MAX_SHOWN:
        return None
    body = job.body.decode(errors="replace").replace("'", "'\\''")
    return f"curl {address_of(request)}{job.path} -H \"Authorization: Bearer $TOKEN\" \\\n  -d '{body}'"


router = Router("/", route_handlers=[show_job, post_cancel, post_repeat])
