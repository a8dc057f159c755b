"""The job API of the human-in-the-loop middleware: `/enqueue`, `/job`, `/jobs`, `/reviewJob`."""

from typing import Annotated, Any, cast
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromQuery, QueryParameter

from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Edit, Verdict
from signoff.core.reviews.policy import Review
from signoff.core.wire import job_as_json
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings
from signoff.doors.http import INTS, Reply, cache_control_of, model_in, null, parse_choice, parse_json, text_unless_null
from signoff.doors.queue import QueueRequest, answer_in_litestar
from signoff.errors import BadRequest, MissingParameter, SignoffError
from signoff.work.jobs.query import MAX_COUNT, count_jobs, departed_callers, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide_with_draft, save_draft
from signoff.work.submit import submit

MAX_PAGE = 1000
PATHS = {"/enqueue", "/job", "/jobs", "/reviewJob"}
VERDICTS: dict[str, Verdict] = {"success": "approve", "fail": "reject", "bot": "redo"}


Round = Annotated[int, msgspec.Meta(ge=0, lt=INTS)]


class ReviewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /reviewJob`."""

    id: str
    """Id of the job."""
    status: str
    """Verdict: `success` to approve, `fail` to reject, `bot` to ask the model again, `human` to save a draft."""
    payload: msgspec.Raw = msgspec.field(default_factory=null)
    """Edited payload; null to keep the old one."""
    response: msgspec.Raw = msgspec.field(default_factory=null)
    """Edited response; null to keep the old one."""
    reason: str | None = None
    """Reason for the verdict."""
    round: Round | None = None
    """Review round that the reviewer saw; None for the current one."""


async def accept_payload(request: QueueRequest) -> Reply:
    """Commit a job for the payload."""
    ask = Ask(
        door="jobs",
        caller=request.caller,
        headers=request.scope["headers"],
        body=request.body,
        target=model_in(request.body),
        door_review=cast("Review", request.door_settings.enqueue_review),
        cache_control=cache_control_of(request.scope),
    )
    job = await submit(request.services, ask)
    return Reply({"status": "success", "job_id": job.id})


@post("/enqueue", status_code=200, summary="Queue a payload for the model, and for review")
async def enqueue(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings, caller: InjectedCaller
) -> Response[dict[str, str]]:
    """Commit a job for the payload and return its id."""
    return await answer_in_litestar(request, services, door_settings, caller, accept_payload)


@get("/job", summary="Get a job")
async def show_job(services: InjectedServices, caller: InjectedCaller, id: FromQuery[str] = "") -> dict[str, Any]:  # noqa: A002 -- a name of the wire format
    """Return the job with this id."""
    if not id:
        raise MissingParameter("id", "Set it to the id of a job.")
    job = await get_job(services, caller, id)
    left_at = (await departed_callers(services, [job])).get(job.id)
    return job_as_json(job, left_at)


@get("/jobs", summary="List jobs, oldest first")
async def show_jobs(
    services: InjectedServices,
    caller: InjectedCaller,
    offset: Annotated[int, QueryParameter(ge=0)] = 0,
    limit: Annotated[int, QueryParameter(ge=0)] = 50,
    status: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
) -> Response[list[dict[str, Any]]]:
    """Return a page of jobs: those after the job `after`, without the first `offset` of them.

    A page has fewer jobs than `limit` if they are large. If more may follow, the header `link` has the next page
    (`rel="next"`), which begins after the last job of this one.
    The header `x-total-count` has the number of all jobs, at most 10000; beyond it, `x-total-is-capped` is `true`.
    """
    if offset > MAX_COUNT:
        raise BadRequest(f"`offset` must be at most {MAX_COUNT} (got {offset}); set `after` to the id of the last job.")
    wanted = parse_choice("status", status, STATUSES) if status else None
    job_filter = JobFilter(status=wanted, limit=min(limit, MAX_PAGE))
    page_filter = msgspec.structs.replace(job_filter, offset=offset, after_id=after)
    jobs, count = await list_jobs(services, caller, page_filter), await count_jobs(services, caller, job_filter)
    headers = {"x-total-count": str(count.number), "x-total-is-capped": "true" if count.is_capped else "false"}
    if jobs and jobs.may_continue:
        query = {"after": jobs[-1].id, "limit": limit} | ({"status": status} if status else {})
        headers["link"] = f'</jobs?{urlencode(query)}>; rel="next"'
    left_at = await departed_callers(services, jobs)
    return Response([job_as_json(job, left_at.get(job.id)) for job in jobs], headers=headers)


@post("/reviewJob", status_code=200, summary="Approve, reject, send back, or save a draft")
async def review_job(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> dict[str, str]:
    """Apply a verdict to a held job, or save edits as a draft."""
    review = parse_json(await request.body(), ReviewRequest, "review")
    edit = Edit(payload=text_unless_null(review.payload), response=text_unless_null(review.response))
    status = parse_choice("status", review.status, STATUSES)
    if status == "human":
        await save_draft(services, caller, review.id, edit)
    else:
        verdict = VerdictRequest(verdict=VERDICTS[status], reason=review.reason, edit=edit, round=review.round)
        await decide_with_draft(services, caller, review.id, verdict)
    return {"status": "success"}


@get("/liveness", summary="Check that the process runs", media_type=MediaType.TEXT)
async def get_liveness() -> str:
    """Return `ok`."""
    return "ok"


def error_payload(error: SignoffError) -> dict[str, Any]:
    """Return an error in the format of this API."""
    return {"status": "error", "code": error.code, "message": error.message}


router = Router("/", route_handlers=[enqueue, show_job, show_jobs, review_job, get_liveness], tags=["review"])
