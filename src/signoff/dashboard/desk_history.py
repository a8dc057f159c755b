"""Form that hands a held answer over to another reviewer or queue, and the list of a reviewer's verdicts."""

import contextlib
from typing import Any

from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller, check_may_review
from signoff.core.job import Job
from signoff.core.reviews.item import question_of
from signoff.core.reviews.queues import ALL_REVIEWERS, format_cursor, parse_cursor
from signoff.dashboard.desk_queue import address_with, open_next, view_of
from signoff.dashboard.jobs import state_of
from signoff.dashboard.review import DECIDED
from signoff.dashboard.shell import REVIEW, page, redirect
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_fields, parse_form
from signoff.doors.reviews import EscalateRequest
from signoff.errors import BadRequest, JobNotFound
from signoff.work.jobs.query import get_job
from signoff.work.reviews.history import PastVerdict, past_verdicts
from signoff.work.reviews.leases import assign, escalate
from signoff.work.services import Services

MAX_LISTED = 30
# Value of the field `queue` for the queue of all reviewers, whose name is empty.
ALL = "all reviewers"


@post("/dashboard/review/{job_id:str}/move", include_in_schema=False, status_code=303)
async def post_move(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Assign the answer to a reviewer, or move it to another queue with a reason, and show the next one."""
    check_may_review(caller)
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), dict[str, str], "move")
    queue, assignee, reason = (form.get(name, "").strip() for name in ("to_queue", "assignee", "why"))
    to_queue = ALL_REVIEWERS if queue == ALL else queue or None
    if assignee:
        await assign(services, caller, job_id, assignee, to_queue)
    elif to_queue is not None:
        move = parse_fields({"queue": to_queue, "reason": reason or None}, EscalateRequest, "move")
        await escalate(services, caller, job_id, move.queue, move.reason)
    else:
        raise BadRequest("`to_queue` or `assignee` is needed to move an answer. Go back and fill one of them in.")
    view = view_of(form)
    job = await open_next(services, caller, view, [job_id])
    return redirect(address_with(REVIEW.path if job is None else f"{REVIEW.path}/{job.id}", view))


@get("/dashboard/review/history", include_in_schema=False, media_type=MediaType.HTML)
async def show_history(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, after: FromQuery[str] = ""
) -> Template:
    """Show a page of the caller's verdicts, newest first, with what others decided in the same round or later."""
    cursor = parse_cursor(after) if after else None
    past = await past_verdicts(services, caller, after=cursor, limit=MAX_LISTED)
    return page(
        request,
        services,
        caller,
        "desk_history.html",
        REVIEW.name,
        rows=[await _row(services, caller, each) for each in past],
        next_cursor=format_cursor(past[-1].vote.at, past[-1].vote.job_id) if len(past) == MAX_LISTED else "",
        is_first=not after,
        words=DECIDED,
    )


async def _row(services: Services, caller: Caller, past: PastVerdict) -> dict[str, Any]:
    job: Job | None = None
    with contextlib.suppress(JobNotFound):
        job = await get_job(services, caller, past.vote.job_id)
    text = "" if job is None else " ".join(question_of(job)[:400].split())
    return {"past": past, "job": job, "text": text, "state": None if job is None else state_of(job)}


router = Router("/", route_handlers=[post_move, show_history])
