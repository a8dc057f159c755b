"""The job door: `/enqueue`, `/job`, `/jobs`, `/reviewJob`, as the human-in-the-loop middleware had them."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from litestar import MediaType, Request, Response, Router, get, post
from litestar.params import FromQuery, QueryParameter

from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Edit, Status, Verdict
from signoff.core.policy import Review
from signoff.core.wire import job_as_json
from signoff.doors.http import (
    BIGINTS,
    INTS,
    InjectedCaller,
    InjectedServices,
    InjectedSettings,
    cache_control_of,
    decoded,
    error_headers,
    scope_of,
)
from signoff.errors import BadBody, BadRequest, SignoffError
from signoff.work.jobs.query import get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide, save_draft
from signoff.work.submit import submit

MAX_PAGE = 1000
PATHS = {"/enqueue", "/job", "/jobs", "/reviewJob"}
VERDICTS: dict[str, Verdict] = {"success": "approve", "fail": "reject", "bot": "redo"}


Round = Annotated[int, msgspec.Meta(ge=0, lt=INTS)]


class NamedModel(msgspec.Struct):
    """A payload that names its model."""

    model: str | None = None


class ReviewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A reviewer's word on a job, and the round in which they saw it; None means whichever it is in."""

    id: str
    status: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    response: msgspec.Raw = msgspec.Raw(b"null")
    reason: str | None = None
    round: Round | None = None


@post("/enqueue", status_code=200, summary="Queue a payload for the model, and for review")
async def enqueue(
    request: Request[Any, Any, Any], services: InjectedServices, door_settings: InjectedSettings, caller: InjectedCaller
) -> dict[str, str]:
    """The id of the job, which is committed."""
    body = await request.body()
    ask = Ask(
        door="jobs",
        caller=caller,
        body=body,
        target=_model_named_in(body),
        door_review=cast("Review", door_settings.enqueue_review),
        cache_control=cache_control_of(scope_of(request)),
    )
    job = await submit(services, ask)
    return {"status": "success", "job_id": job.id}


@get("/job", summary="Look at a job")
async def job(services: InjectedServices, caller: InjectedCaller, id: FromQuery[str] = "") -> dict[str, Any]:  # noqa: A002 -- the wire's own name
    """The job called `id`."""
    if not id:
        raise BadRequest("Which job? GET /job?id=…")
    return job_as_json(await get_job(services, caller, id))


@get("/jobs", summary="List jobs, oldest first")
async def jobs(
    services: InjectedServices,
    caller: InjectedCaller,
    offset: Annotated[int, QueryParameter(ge=0, lt=BIGINTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=0)] = 50,
    status: FromQuery[str | None] = None,
) -> Response[list[dict[str, Any]]]:
    """A page of jobs; the header `x-total-count` says how many there are."""
    which = JobFilter(status=_status(status) if status else None, offset=offset, limit=min(limit, MAX_PAGE))
    found, total = await list_jobs(services, caller, which)
    return Response([job_as_json(job) for job in found], headers={"x-total-count": str(total)})


@post("/reviewJob", status_code=200, summary="Approve, reject, send back, or keep edits")
async def review_job(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller
) -> dict[str, str]:
    """Done, or an error that says why not."""
    review = decoded(await request.body(), ReviewRequest, "This is not a review", BadBody)
    edit, status = Edit(payload=_given(review.payload), response=_given(review.response)), _status(review.status)
    if status == "human":
        await save_draft(services, caller, review.id, edit)
    else:
        opinion = VerdictRequest(verdict=VERDICTS[status], reason=review.reason, edit=edit, round=review.round)
        await decide(services, caller, review.id, opinion)
    return {"status": "success"}


@get("/liveness", summary="Is the server there?", media_type=MediaType.TEXT)
async def liveness() -> str:
    """It is."""
    return "ok"


def failed(_: Request[Any, Any, Any], error: SignoffError) -> Response[dict[str, Any]]:
    """An error in this door's dialect."""
    body = {"status": "error", "code": error.code, "message": error.message}
    return Response(body, status_code=error.status, headers=dict(error_headers(error)))


def _given(value: msgspec.Raw) -> str | None:
    """The text of a JSON value; null is as good as nothing."""
    text = bytes(value).decode()
    return None if text == "null" else text


def _status(text: str) -> Status:
    for status in STATUSES:
        if text.strip().lower() == status:
            return status
    raise BadRequest(f"{text!r} is not a status; there are {', '.join(STATUSES)}.")


def _model_named_in(payload: bytes) -> str | None:
    try:
        return msgspec.json.decode(payload, type=NamedModel).model
    except msgspec.ValidationError:
        return None  # `model` is no text: then it names none
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The payload is not valid JSON: {error}") from None


router = Router("/", route_handlers=[enqueue, job, jobs, review_job, liveness], tags=["review"])
