"""The review desk: the queue, one held answer with everything that is signed off, and the form for the verdict."""

import contextlib
from typing import Any

from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.job import Edit, Job, Verdict
from signoff.core.reviews.item import question_of
from signoff.dashboard.desk_card import HeldCard, digest_of, held_card, opener_of
from signoff.dashboard.desk_edits import FormEdit, is_savable, read_edit
from signoff.dashboard.desk_queue import (
    QueueView,
    address_with,
    open_next,
    queue_state,
    signal_details,
    signal_text,
    view_of,
)
from signoff.dashboard.difference import count_words
from signoff.dashboard.media import media_of
from signoff.dashboard.shell import REVIEW, address_of, page, redirect
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits, parse_fields, parse_form
from signoff.doors.reviews import DecideRequest
from signoff.errors import BadRequest, Forbidden, JobNotFound, Stale
from signoff.work.jobs.query import get_job
from signoff.work.reviews.desk import VerdictRequest, decide_on_desk, save_draft, undo_verdict
from signoff.work.reviews.held import check_current, load_held
from signoff.work.reviews.leases import lock_for_review
from signoff.work.reviews.queues import list_queues, list_reasons
from signoff.work.services import Services

MAX_SKIPPED = 50
VERDICTS: dict[str, Verdict] = {"approve": "approve", "redo": "redo", "reject": "reject"}
DECIDED = {"approve": "Approved", "redo": "Sent back", "reject": "Rejected"}
ITEM = "/dashboard/review/{job_id:str}"


@get("/dashboard/review", include_in_schema=False, media_type=MediaType.HTML)
async def show_review(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, decided: FromQuery[str] = ""
) -> Template:
    """Show the queue, and nothing else."""
    return await _review_page(request, services, caller, None, view=view_of(request.query_params), decided=decided)


@get("/dashboard/review/queue", include_in_schema=False, media_type=MediaType.HTML)
async def show_queue(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, item: FromQuery[str] = ""
) -> Template:
    """Return the queue alone, and who has the item `item` open, for a page that shows it."""
    state = await queue_state(services, caller, view_of(request.query_params))
    opened_by, over = None, ""
    if item:
        try:
            opened_by = opener_of(services, await load_held(services, caller, item))
        except (Stale, JobNotFound, Forbidden) as error:
            over = error.message
    state |= {"current_id": item, "is_partial": True, "opened_by": opened_by, "over": over}
    return page(request, services, caller, "queue.html", REVIEW.name, **state)


@get(ITEM, include_in_schema=False, media_type=MediaType.HTML)
async def show_item(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    job_id: FromPath[str],
    *,
    decided: FromQuery[str] = "",
    skip: FromQuery[str] = "",
) -> Template:
    """Show a held answer. The page opens it for the caller by a form, because following a link must change nothing."""
    job = await load_held(services, caller, job_id)
    card = await held_card(services, caller, job)
    view = view_of(request.query_params)
    return await _review_page(request, services, caller, card, view=view, decided=decided, skip=skip)


@post("/dashboard/review/next", include_in_schema=False, status_code=303)
async def post_next(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Open the next answer for the caller, and show it."""
    form = await _form(request)
    response = await _to_next(services, caller, form)
    await _leave(services, caller, form)
    return response


@post(f"{ITEM}/skip", include_in_schema=False, status_code=303)
async def post_skip(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Give the answer back, and show the next one."""
    form = await _form(request)
    await lock_for_review(services, caller, job_id, "leave")
    return await _to_next(services, caller, form | {"skip": ",".join([*_skipped(form), job_id])})


@post(f"{ITEM}/open", include_in_schema=False, status_code=303)
async def post_open(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Open the answer for the caller, and show it."""
    form = await _form(request)
    await lock_for_review(services, caller, job_id, "open")
    return redirect(address_with(f"{REVIEW.path}/{job_id}", view_of(form)))


@post(f"{ITEM}/leave", include_in_schema=False, status_code=303)
async def post_leave(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Give the answer back, and show the queue."""
    form = await _form(request)
    await lock_for_review(services, caller, job_id, "leave")
    return redirect(address_with(REVIEW.path, view_of(form)))


@post(f"{ITEM}/undo", include_in_schema=False, status_code=303)
async def post_undo(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Withdraw a verdict before it takes effect, and show the answer again."""
    form = await _form(request)
    decided = await load_held(services, caller, job_id)
    await undo_verdict(services, caller, job_id)
    if decided.decision is not None and decided.decision.edit != Edit():  # what was edited is not lost with the verdict
        with contextlib.suppress(Stale, JobNotFound, Forbidden):
            await save_draft(services, caller, job_id, decided.decision.edit)
    await _leave(services, caller, form)
    return redirect(address_with(f"{REVIEW.path}/{job_id}", view_of(form)))


@post(f"{ITEM}/draft", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_draft(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Template:
    """Save the text as the draft of the answer, and return its difference to the model's answer."""
    form = await _form(request)
    job = await load_held(services, caller, job_id)
    desk_edit = read_edit(job, form, for_draft=True)
    if desk_edit.edit != Edit() and is_savable(desk_edit.faults):
        job = await save_draft(services, caller, job_id, desk_edit.edit, review_round=_round(form))
    card = await held_card(services, caller, job, form, desk_edit.faults)
    return page(request, services, caller, "desk_changes.html", REVIEW.name, card=card, count=count_words)


@get(f"{ITEM}/media/{{number:int}}", include_in_schema=False)
async def show_medium(
    services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str], number: FromPath[int]
) -> Response[bytes]:
    """Return an image or a sound of the request; any other file is downloaded."""
    media = media_of((await load_held(services, caller, job_id)).body)
    if not 0 <= number < len(media):
        raise JobNotFound
    medium = media[number]
    headers = {
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "private, max-age=300",
    }
    if medium.kind == "file":
        headers["content-disposition"] = f'attachment; filename="{job_id}-{number}"'
    media_type = "application/octet-stream" if medium.kind == "file" else medium.content_type
    return Response(medium.content, media_type=media_type, headers=headers)


@post("/dashboard/decide", include_in_schema=False, status_code=303)
async def post_verdict(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Response[str] | Template:
    """Apply a verdict from the form, and show the next answer."""
    form = await _form(request)
    verdict = VERDICTS.get(form.get("verdict", ""))
    if verdict is None:
        raise BadRequest("The form needs a valid `verdict`; reload the page and try again.")
    job = await load_held(services, caller, form.get("id", ""))
    reason, note = form.get("reason", "").strip(), form.get("note", "").strip()
    if verdict == "reject":
        reason = ": ".join(filter(None, (reason, note)))
        if not reason:
            raise BadRequest("`reason` is needed to reject an answer: its caller gets it. Go back and fill it in.")
    await check_current(services, job, _round(form))
    _check_seen(services, caller, job, form)
    desk_edit = read_edit(job, form) if verdict == "approve" else FormEdit()
    if desk_edit.faults:
        card = await held_card(services, caller, job, form, desk_edit.faults)
        skip = form.get("skip", "")
        response = await _review_page(request, services, caller, card, view=view_of(form), skip=skip)
        response.status_code = 400
        return response
    instruction = (note or None) if verdict == "redo" else None
    fields = {"verdict": verdict, "round": _round(form), "reason": reason or None, "instruction": instruction}
    new = parse_fields(fields, DecideRequest, "verdict")
    verdict_request = VerdictRequest(
        verdict=verdict, reason=new.reason, edit=desk_edit.edit, round=new.round, instruction=new.instruction
    )
    await decide_on_desk(services, caller, job.id, verdict_request, uses_draft=False)
    return await _to_next(services, caller, form, decided=job.id)


def _check_seen(services: Services, caller: Caller, job: Job, form: dict[str, str]) -> None:
    """Raise Stale, with the name of who is the cause, if another has `job` open, or the page showed another draft."""
    opener = opener_of(services, job)
    if opener not in {None, caller.email}:
        raise Stale(f"{opener} has it open.", job_id=job.id)
    if form.get("seen") == digest_of(job):
        return
    author = None if job.draft is None else job.draft.author
    who = "You" if author == caller.email else author or "A reviewer"
    raise Stale(f"{who} changed the draft since the page was loaded; reload it, and look again.", job_id=job.id)


async def _form(request: AnyRequest) -> dict[str, str]:
    check_same_site(scope_of(request))
    return parse_form(await request.body(), dict[str, str], "verdict")


def _round(form: dict[str, str]) -> int:
    number = parse_digits(form.get("round"))
    if number is None or number >= INTS:
        raise BadRequest("The form needs a valid `round`; reload the page and try again.")
    return number


async def _leave(services: Services, caller: Caller, form: dict[str, str]) -> None:
    """Give back the answer that the page showed, and that the caller leaves for another one."""
    if form.get("leave"):
        with contextlib.suppress(Stale, JobNotFound, Forbidden):
            await lock_for_review(services, caller, form["leave"], "leave")


def _skipped(form: dict[str, str]) -> list[str]:
    return [name for name in form.get("skip", "").split(",") if name][-MAX_SKIPPED:]


async def _to_next(services: Services, caller: Caller, form: dict[str, str], decided: str = "") -> Response[str]:
    """Open the next answer for the caller, and redirect to it, or to the queue if none is left."""
    skip, view = _skipped(form), view_of(form)
    job = await open_next(services, caller, view, skip)
    path = REVIEW.path if job is None else f"{REVIEW.path}/{job.id}"
    return redirect(address_with(path, view, decided=decided, skip=",".join(skip)))


async def _review_page(  # noqa: PLR0913 -- the state of the page
    request: AnyRequest,
    services: Services,
    caller: Caller,
    card: HeldCard | None,
    *,
    view: QueueView,
    decided: str = "",
    skip: str = "",
) -> Template:
    return page(
        request,
        services,
        caller,
        "review.html",
        REVIEW.name,
        skip=skip,
        card=card,
        current_id="" if card is None else card.job.id,
        opened_by=None if card is None else card.opened_by,
        count=count_words,
        signal_text=signal_text,
        signal_details=signal_details,
        verdicts=DECIDED,
        reasons=await list_reasons(services, caller),
        queues=await list_queues(services, caller),
        undo=await _undoable(services, caller, decided),
        address=address_of(request),
        **await queue_state(services, caller, view),
    )


async def _undoable(services: Services, caller: Caller, job_id: str) -> dict[str, Any] | None:
    """Return what the caller decided last, while it can be undone; None if it cannot."""
    if not job_id:
        return None
    try:
        job = await get_job(services, caller, job_id)
    except JobNotFound:
        return None
    decision, seconds = job.decision, ((job.release_at or 0) - services.clock()) / 1_000_000
    if job.status != "human" or decision is None or decision.reviewer != caller.email or seconds <= 0:
        return None
    text = " ".join(question_of(job)[:80].split())
    return {"job_id": job_id, "verdict": DECIDED[decision.verdict], "text": text, "seconds": max(round(seconds), 1)}


router = Router(
    "/",
    route_handlers=[
        show_review,
        show_queue,
        show_item,
        post_next,
        post_skip,
        post_open,
        post_leave,
        post_undo,
        post_draft,
        show_medium,
        post_verdict,
    ],
)
