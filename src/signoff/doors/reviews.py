"""The native API of reviews: `/api/reviews`, the desk on which reviewers decide on held answers."""

from typing import Annotated, Any, get_args

import msgspec
from litestar import Response, Router, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.access import Caller
from signoff.core.job import Edit, Job, Verdict
from signoff.core.reviews.bulk import MAX_BULK, MAX_CONDITIONS, Bulk, SignalsCondition
from signoff.core.reviews.item import decision_as_json, item_as_json, summary_as_json
from signoff.core.reviews.queues import DecisionRecord, ReviewFilter, ReviewOrder, format_cursor, parse_cursor, place_of
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, null, parse_choice, parse_json, text_unless_null
from signoff.errors import BadRequest
from signoff.work.reviews.bulk import BulkSelection, apply_bulk, select_bulk, undo_bulk
from signoff.work.reviews.desk import VerdictRequest, decide_on_desk, save_draft, undo_verdict
from signoff.work.reviews.held import load_held
from signoff.work.reviews.history import (
    PastVerdict,
    asker_of,
    list_held,
    open_votes,
    past_verdicts,
    queue_depths,
    recent_agreement,
    with_queues,
)
from signoff.work.reviews.leases import LockAction, assign, escalate, lock_for_review, take_next
from signoff.work.services import Services

MAX_PAGE = 200
MAX_TEXT = 10_000
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
ORDERS: tuple[ReviewOrder, ...] = get_args(ReviewOrder)
Round = Annotated[int, msgspec.Meta(ge=0, lt=INTS)]
BoundedText = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class NextRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/next`."""

    queue: str | None = None
    """Name of a review queue, `""` for that of all reviewers; null for all queues of the caller."""
    skip: list[str] = []
    """Ids of jobs to leave out."""


class DraftRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/{job_id}/draft`."""

    round: Round
    """Review round that the reviewer saw."""
    payload: msgspec.Raw = msgspec.field(default_factory=null)
    """Edited request; null to keep the one of the draft."""
    response: msgspec.Raw = msgspec.field(default_factory=null)
    """Edited answer, as JSON or as a text; null to keep the one of the draft."""


class DecideRequest(DraftRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/{job_id}/decide`."""

    verdict: str
    """`approve`, `redo` (ask the model again) or `reject`."""
    reason: BoundedText | None = None
    """Reason for the verdict, which a rejection needs."""
    instruction: BoundedText | None = None
    """Words to the model that is asked again; only for `redo`."""


class EscalateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/{job_id}/escalate`."""

    queue: str
    """Name of the review queue whose members decide."""
    reason: BoundedText | None = None
    """Reason for the escalation."""


class AssignRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/{job_id}/assign`."""

    assignee: str | None = None
    """Email of a reviewer; null for nobody."""
    queue: str | None = None
    """Name of a review queue to move the answer to; null to leave it where it is."""


class BulkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/reviews/bulk`."""

    verdict: str
    """`approve`, `redo` or `reject`."""
    reason: BoundedText | None = None
    """Reason for the verdict, which a rejection needs."""
    queue: str | None = None
    """Name of a review queue; null for all queues of the caller."""
    target: str | None = None
    """Name of the model, prompt or pipeline that was requested; null for any."""
    policy: str | None = None
    """Name of the policy that holds the answer; null for any."""
    signals: Annotated[list[SignalsCondition], msgspec.Meta(max_length=MAX_CONDITIONS)] = []
    """Conditions on the signals of the answer, joined by AND."""
    min_age_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    """Time since the answer was held; null for any."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_BULK)] = MAX_BULK
    """Maximum number of answers to select."""


@get("/", summary="List held answers")
async def list_held_answers(  # noqa: PLR0913 -- one parameter for each filter
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    queue: FromQuery[str | None] = None,
    target: FromQuery[str | None] = None,
    assignee: FromQuery[str | None] = None,
    min_age_seconds: Annotated[float | None, QueryParameter(ge=0, le=1e9)] = None,
    order: FromQuery[str] = "urgent",
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Return a page of held answers in the order of the desk (by priority, deadline and age), or by time of the hold.

    Pass `next` as `after` to get the next page; it is null on the last one.
    """
    filters = ReviewFilter(
        queues=(),
        order=parse_choice("order", order, ORDERS),
        target=target,
        assignee=assignee,
        min_age_seconds=min_age_seconds,
        after=None if after is None else parse_cursor(after),
        limit=limit,
    )
    page = await list_held(services, caller, queue, filters)
    data = [summary_as_json(job, services.clock()) for job in page]
    return {
        "data": data,
        "next": format_cursor(*place_of(page[-1], filters.order)) if page and page.may_continue else None,
    }


@post(
    "/next",
    status_code=200,
    summary="Take the next held answer",
    responses={204: ResponseSpec(data_container=None, description="No answer is left.", generate_examples=False)},
)
async def post_next(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[Any]:
    """Open the next answer for the caller, and return it; status 204 if none is left.

    For 5 minutes, no other reviewer gets it or can decide on it; the caller can renew this time, or leave the answer.
    """
    body = await request.body()
    wanted = parse_json(body, NextRequest, "request") if body else NextRequest()
    job = await take_next(services, caller, wanted.queue, wanted.skip)
    if job is None:
        return Response(None, status_code=204)
    return Response(await _item(services, caller, job))


@get("/stats", summary="Count held answers by queue")
async def get_stats(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return how many answers wait in each queue of the caller, up to 1000, and since when."""
    depths = [msgspec.structs.asdict(depth) for depth in await queue_depths(services, caller)]
    times = (depth.pop("oldest_held_at") for depth in depths)
    return {
        "data": [
            depth | {"oldest_held_at": None if at is None else format_time(at)}
            for depth, at in zip(depths, times, strict=True)
        ]
    }


@get("/history", summary="List the verdicts of the caller")
async def get_history(
    services: InjectedServices,
    caller: InjectedCaller,
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Return a page of the caller's verdicts, newest first, with what others decided in the same round or later."""
    page = await past_verdicts(services, caller, after=None if after is None else parse_cursor(after), limit=limit)
    following = format_cursor(page[-1].vote.at, page[-1].vote.job_id) if len(page) == limit else None
    return {"data": [_past_json(past) for past in page], "next": following}


@get("/agreement", summary="Compare votes of reviewers")
async def get_agreement(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return how far reviewers agree on answers with several votes: the share of equal verdicts, and Cohen's kappa."""
    return msgspec.structs.asdict(await recent_agreement(services, caller))


@post("/bulk", status_code=201, summary="Select answers for a bulk decision")
async def post_bulk(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Select answers, and return how many they are; the selection stays as it is until it is applied.

    Some answers always stay for single decisions.
    """
    wanted = parse_json(await request.body(), BulkRequest, "bulk decision")
    filters = ReviewFilter(queues=(), target=wanted.target, min_age_seconds=wanted.min_age_seconds, limit=wanted.limit)
    filters = await with_queues(services, caller, wanted.queue, filters)
    selection = BulkSelection(
        filters=filters,
        policy=wanted.policy,
        signals=tuple(wanted.signals),
        verdict=parse_choice("verdict", wanted.verdict, VERDICTS),
        reason=wanted.reason,
    )
    return _bulk_json(await select_bulk(services, caller, selection))


@post("/bulk/{bulk_id:str}/apply", status_code=200, summary="Apply a bulk decision")
async def post_bulk_apply(services: InjectedServices, caller: InjectedCaller, bulk_id: FromPath[str]) -> dict[str, Any]:
    """Decide on each selected answer, and return what came of each; those that changed meanwhile are skipped."""
    return _bulk_json(await apply_bulk(services, caller, bulk_id))


@post("/bulk/{bulk_id:str}/undo", status_code=200, summary="Undo a bulk decision")
async def post_bulk_undo(services: InjectedServices, caller: InjectedCaller, bulk_id: FromPath[str]) -> dict[str, Any]:
    """Undo each decision of the bulk that has not taken effect."""
    return _bulk_json(await undo_bulk(services, caller, bulk_id))


@get("/{job_id:str}", summary="Get a held answer")
async def get_review(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Return the held answer with everything that a reviewer signs off, without opening it."""
    return await _item(services, caller, await load_held(services, caller, job_id))


@post("/{job_id:str}/open", status_code=200, summary="Open a held answer")
async def post_open(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Open the answer for the caller for 5 minutes, and return it."""
    return await _locked(services, caller, job_id, "open")


@post("/{job_id:str}/renew", status_code=200, summary="Keep a held answer open")
async def post_renew(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Keep the answer open for 5 minutes from now, and return it; 409 if the caller no longer has it open."""
    return await _locked(services, caller, job_id, "renew")


@post("/{job_id:str}/leave", status_code=204, summary="Leave a held answer")
async def post_leave(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> None:
    """Give the answer back to its queue; a page can send this with `navigator.sendBeacon` as it closes."""
    await lock_for_review(services, caller, job_id, "leave")


@post("/{job_id:str}/draft", status_code=200, summary="Save a draft")
async def post_draft(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> dict[str, Any]:
    """Save edits of the answer or of the request; a verdict of the same reviewer sends them."""
    draft = parse_json(await request.body(), DraftRequest, "draft")
    job = await save_draft(services, caller, job_id, _edit(draft), review_round=draft.round)
    return await _item(services, caller, job)


@post("/{job_id:str}/decide", status_code=200, summary="Approve, reject, or send back")
async def post_decide(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> dict[str, Any]:
    """Give a verdict; it takes effect after `release_after_seconds`, and can be undone until then.

    The saved draft of the caller replaces a missing edit: of the answer for `approve`, of the request for `redo`.
    """
    wanted = parse_json(await request.body(), DecideRequest, "verdict")
    verdict, reason = parse_choice("verdict", wanted.verdict, VERDICTS), (wanted.reason or "").strip() or None
    if verdict == "reject" and reason is None:
        raise BadRequest("`reason` is missing; set it to reject an answer, as its caller gets it.")
    if wanted.instruction and verdict != "redo":
        raise BadRequest("`instruction` is allowed with the verdict `redo` only; remove it.")
    verdict_request = VerdictRequest(
        verdict=verdict,
        reason=reason,
        edit=_edit(wanted),
        round=wanted.round,
        instruction=wanted.instruction,
    )
    return _state(await decide_on_desk(services, caller, job_id, verdict_request))


@post("/{job_id:str}/undo", status_code=200, summary="Undo a verdict")
async def post_undo(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Withdraw the caller's verdict before it takes effect; a new round begins."""
    return _state(await undo_verdict(services, caller, job_id))


@post("/{job_id:str}/escalate", status_code=200, summary="Move a held answer to another queue to decide")
async def post_escalate(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> dict[str, Any]:
    """Move the answer to another review queue, and give it up."""
    wanted = parse_json(await request.body(), EscalateRequest, "escalation")
    return _state(await escalate(services, caller, job_id, wanted.queue, wanted.reason))


@post("/{job_id:str}/assign", status_code=200, summary="Assign a held answer")
async def post_assign(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> dict[str, Any]:
    """Assign the answer to a reviewer, to a review queue, or to both."""
    wanted = parse_json(await request.body(), AssignRequest, "assignment")
    return _state(await assign(services, caller, job_id, wanted.assignee, wanted.queue))


async def _locked(services: Services, caller: Caller, job_id: str, action: LockAction) -> dict[str, Any]:
    return await _item(services, caller, await lock_for_review(services, caller, job_id, action))


async def _item(services: Services, caller: Caller, job: Job) -> dict[str, Any]:
    votes_cast, votes = await open_votes(services, job)
    asker = await asker_of(services, caller, job)
    return item_as_json(job, services.clock(), reviewer=caller.email, asker=asker, votes_cast=votes_cast, votes=votes)


def _state(job: Job) -> dict[str, Any]:
    """Return the state of a job after a change of its review."""
    members = {"job_id": job.id, "status": job.status, "round": job.round, "queue": job.review_queue}
    return members | {"assignee": job.assignee, "decision": decision_as_json(job)}


def _edit(wanted: DraftRequest) -> Edit:
    return Edit(payload=text_unless_null(wanted.payload), response=text_unless_null(wanted.response))


def _past_json(past: PastVerdict) -> dict[str, Any]:
    vote = past.vote
    return {
        "job_id": vote.job_id,
        "round": vote.round,
        "verdict": vote.verdict,
        "at": format_time(vote.at),
        "status": past.status,
        "decision": None if past.decision is None else _record_json(past.decision),
        "changed_afterwards": [_record_json(each) for each in past.later],
    }


def _record_json(record: DecisionRecord) -> dict[str, Any]:
    decision = record.decision
    members = {"round": record.round, "verdict": decision.verdict, "reviewer": decision.reviewer}
    return members | {"reason": decision.reason, "edited": decision.edit != Edit(), "at": format_time(record.at)}


def _bulk_json(bulk: Bulk) -> dict[str, Any]:
    states = [item.state for item in bulk.items]
    return {
        "id": bulk.id,
        "verdict": bulk.verdict,
        "reason": bulk.reason,
        "count": len(bulk.items),
        "examined": bulk.examined,
        "is_whole": bulk.is_whole,
        "decided": states.count("decided"),
        "skipped": states.count("skipped"),
        "undone": states.count("undone"),
        "items": [msgspec.structs.asdict(item) for item in bulk.items],
    }


router = Router(
    "/api/reviews",
    route_handlers=[
        list_held_answers,
        post_next,
        get_stats,
        get_history,
        get_agreement,
        post_bulk,
        post_bulk_apply,
        post_bulk_undo,
        get_review,
        post_open,
        post_renew,
        post_leave,
        post_draft,
        post_decide,
        post_undo,
        post_escalate,
        post_assign,
    ],
    tags=["reviews"],
)
