"""The page of jobs: a filter in the address, a cursor, and the latest jobs first."""

from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from litestar import MediaType, Response, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Job, Status
from signoff.core.reviews.item import question_of
from signoff.dashboard.content import answer_of_job
from signoff.dashboard.shell import JOBS, address_of, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.work.jobs.query import list_jobs

MAX_LISTED = 50


class StateLabel(NamedTuple):
    """Status of a job in words: read any two of word, icon and colour, and you know."""

    word: str
    icon: str
    colour: str


LABELS: dict[Status, StateLabel] = {
    "bot": StateLabel("In progress", "run", "run"),
    "human": StateLabel("In review", "pause", "hold"),
    "success": StateLabel("Answered", "check", "ok"),
    "fail": StateLabel("Failed", "x", "bad"),
}


def state_of(job: Job) -> StateLabel:
    """Return the label of the state of `job`; a job that waits for its turn is queued."""
    if job.status == "bot" and job.parked_at is not None:
        return StateLabel("Waits for its steps", "pause", "hold")
    if job.status == "bot" and job.lease is None:
        return StateLabel("Queued", "ring", "")
    return LABELS[job.status]


@get("/dashboard/jobs", include_in_schema=False, media_type=MediaType.HTML)
async def show_jobs(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    status: FromQuery[str] = "",
    after: FromQuery[str] = "",
    q: FromQuery[str] = "",
) -> Template | Response[str]:
    """Show a page of the jobs that the caller may see, newest first; `q` is the id of a job, and leads to it."""
    if q.strip():
        target = f"{JOBS.path}/{quote(q.strip(), safe='')}"
        return Response("", status_code=303, headers={"location": target})
    chosen: Status | None = next((each for each in STATUSES if each == status), None)
    jobs = await list_jobs(
        services, caller, JobFilter(status=chosen, after_id=after or None, limit=MAX_LISTED, newest_first=True)
    )
    rows = [_row(job) for job in jobs]
    following = {"status": chosen or "", "after": jobs[-1].id} if jobs and jobs.may_continue else None
    return page(
        request,
        services,
        caller,
        "jobs.html",
        JOBS.name,
        rows=rows,
        labels=LABELS,
        chosen=chosen,
        is_first=not after,
        next_query=None if following is None else urlencode(following),
        address=address_of(request),
    )


def _row(job: Job) -> dict[str, Any]:
    question = " ".join(question_of(job)[:400].split())
    return {"job": job, "state": state_of(job), "question": question, "answer": _result(job)}


def _result(job: Job) -> str:
    text = job.error.message if job.error and job.status == "fail" else answer_of_job(job)
    return " ".join(text[:400].split())


router = Router("/", route_handlers=[show_jobs])
