"""The review desk: the queue, one held answer with everything that is signed off, and the form for the verdict."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.binary import describe_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import shown_answer
from signoff.core.dialects.transcript import TranscriptEntry, answer_details, transcript
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Edit, Job, Verdict
from signoff.core.reviews.queues import ReviewFilter
from signoff.core.reviews.votes import as_seen_by, votes_needed
from signoff.dashboard.content import MAX_SHOWN, cut, question_of, shown_text
from signoff.dashboard.difference import Change, count_words, difference
from signoff.dashboard.shell import REVIEW, address_of, page
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits, parse_form
from signoff.errors import BadRequest, JobNotFound, Stale
from signoff.work.jobs.query import departed_callers, get_job
from signoff.work.reviews.desk import VerdictRequest, decide_on_desk, save_draft, undo_verdict
from signoff.work.reviews.held import load_held
from signoff.work.reviews.history import asker_of, list_held, queue_depths
from signoff.work.reviews.leases import lock_for_review, take_next
from signoff.work.reviews.queues import list_reasons
from signoff.work.services import Services

MAX_LISTED = 30
MAX_SKIPPED = 50
VERDICTS: dict[str, Verdict] = {"approve": "approve", "redo": "redo", "reject": "reject"}
DECIDED = {"approve": "Approved", "redo": "Sent back", "reject": "Rejected"}
ITEM = "/dashboard/review/{job_id:str}"


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Held answer in the list of the queue."""

    job: Job
    """The job."""
    text: str
    """Beginning of the question."""
    priority: int
    """Priority on the desk, from 0 to 9."""
    opened_by: str | None
    """Email of the reviewer who has it open."""


class HeldCard(msgspec.Struct, frozen=True, kw_only=True):
    """Held job, with all that a reviewer signs off."""

    job: Job
    """The job."""
    asker: str | None
    """Email of the user who asked."""
    answer: str
    """Text of the answer, or of the saved draft of it."""
    original: str
    """Text of the model's answer."""
    changes: list[Change]
    """Difference between the two."""
    input: list[TranscriptEntry]
    """Everything that the request says, in order."""
    new_input: list[TranscriptEntry]
    """Everything that the request of the saved draft says, which the model is asked again; empty without one."""
    details: str | None
    """JSON of the whole answer if it says more than its text, such as calls of tools."""
    has_draft: bool
    """True if `answer` is a saved draft."""
    is_cut: bool
    """True if the texts are too long to be shown whole."""
    caller_left_at: int | None
    """Time since when the caller does not wait for the answer, in microseconds since 1970; None if nobody has left."""
    seen: str
    """Digest of the answer and the draft that are shown, which the form sends back."""
    opened_by: str | None
    """Email of the reviewer who has it open; None for nobody."""
    signals: dict[str, Any]
    """Values that the policy has looked at."""
    votes: int
    """Number of reviewers who must agree."""


@get("/dashboard/review", include_in_schema=False, media_type=MediaType.HTML)
async def show_review(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    queue: FromQuery[str | None] = None,
    decided: FromQuery[str] = "",
) -> Template:
    """Show the queue, and nothing else."""
    return await _review_page(request, services, caller, None, queue=queue or None, decided=decided)


@get(ITEM, include_in_schema=False, media_type=MediaType.HTML)
async def show_item(  # noqa: PLR0913 -- one parameter for each part of the address
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    job_id: FromPath[str],
    *,
    queue: FromQuery[str | None] = None,
    decided: FromQuery[str] = "",
    skip: FromQuery[str] = "",
) -> Template:
    """Show a held answer. Opening it for the caller is up to the page, since a link must change nothing."""
    job = as_seen_by(await load_held(services, caller, job_id), caller.email)
    card = await _card(services, caller, job)
    return await _review_page(request, services, caller, card, queue=queue or None, decided=decided, skip=skip)


@post("/dashboard/review/next", include_in_schema=False, status_code=303)
async def post_next(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Open the next answer for the caller, and show it."""
    return await _to_next(services, caller, await _form(request))


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
    return _to(f"{REVIEW.path}/{job_id}", {"queue": form.get("queue")})


@post(f"{ITEM}/leave", include_in_schema=False, status_code=303)
async def post_leave(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Give the answer back, and show the queue."""
    form = await _form(request)
    await lock_for_review(services, caller, job_id, "leave")
    return _to(REVIEW.path, {"queue": form.get("queue")})


@post(f"{ITEM}/undo", include_in_schema=False, status_code=303)
async def post_undo(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Response[str]:
    """Withdraw a verdict before it takes effect, and show the answer again."""
    form = await _form(request)
    await undo_verdict(services, caller, job_id)
    return _to(f"{REVIEW.path}/{job_id}", {"queue": form.get("queue")})


@post(f"{ITEM}/draft", include_in_schema=False, status_code=200, media_type=MediaType.HTML)
async def post_draft(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]
) -> Template:
    """Save the text as the draft of the answer, and return its difference to the model's answer."""
    form = await _form(request)
    job = as_seen_by(await load_held(services, caller, job_id), caller.email)
    edit = _edited(job, form.get("answer", "").replace("\r\n", "\n"))
    if edit != Edit():
        job = as_seen_by(await save_draft(services, caller, job_id, edit, review_round=_round(form)), caller.email)
    card = await _card(services, caller, job)
    return page(request, services, caller, "difference.html", REVIEW.name, card=card, count=count_words)


@post("/dashboard/decide", include_in_schema=False, status_code=303)
async def post_verdict(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Apply a verdict from the form, and show the next answer."""
    form = await _form(request)
    verdict = VERDICTS.get(form.get("verdict", ""))
    if verdict is None:
        raise BadRequest("The form needs a valid `verdict`; reload the page and try again.")
    job = as_seen_by(await get_job(services, caller, form.get("id", "")), caller.email)
    reason, note = form.get("reason", "").strip(), form.get("note", "").strip()
    if verdict == "reject":
        reason = ": ".join(filter(None, (reason, note)))
        if not reason:
            raise BadRequest("`reason` is needed to reject an answer: its caller gets it. Go back and fill it in.")
    if form.get("seen") != _digest(job):
        raise Stale("The answer or its draft changed since the page was loaded; reload it, and look again.")
    edit = _edited(job, form.get("answer", "").replace("\r\n", "\n")) if verdict == "approve" else Edit()
    verdict_request = VerdictRequest(
        verdict=verdict,
        reason=reason or None,
        edit=edit,
        round=_round(form),
        instruction=(note or None) if verdict == "redo" else None,
    )
    await decide_on_desk(services, caller, job.id, verdict_request, uses_draft=False)
    return await _to_next(services, caller, form, decided=job.id)


async def _form(request: AnyRequest) -> dict[str, str]:
    check_same_site(scope_of(request))
    return parse_form(await request.body(), dict[str, str], "verdict")


def _round(form: dict[str, str]) -> int:
    number = parse_digits(form.get("round"))
    if number is None or number >= INTS:
        raise BadRequest("The form needs a valid `round`; reload the page and try again.")
    return number


def _skipped(form: dict[str, str]) -> list[str]:
    return [name for name in form.get("skip", "").split(",") if name][-MAX_SKIPPED:]


async def _to_next(services: Services, caller: Caller, form: dict[str, str], decided: str = "") -> Response[str]:
    """Open the next answer for the caller, and redirect to it, or to the queue if none is left."""
    skip, queue = _skipped(form), form.get("queue") or None
    job = await take_next(services, caller, queue, skip)
    path = REVIEW.path if job is None else f"{REVIEW.path}/{job.id}"
    return _to(path, {"queue": queue, "decided": decided, "skip": ",".join(skip)})


def _to(path: str, query: dict[str, str | None]) -> Response[str]:
    text = urlencode({name: value for name, value in query.items() if value})
    return Response("", status_code=303, headers={"location": f"{path}?{text}" if text else path})


async def _review_page(  # noqa: PLR0913 -- the state of the page
    request: AnyRequest,
    services: Services,
    caller: Caller,
    card: HeldCard | None,
    *,
    queue: str | None,
    decided: str = "",
    skip: str = "",
) -> Template:
    filters = ReviewFilter(queues=(), limit=MAX_LISTED)
    depths = await queue_depths(services, caller)
    chosen = [depth for depth in depths if queue is None or depth.queue == queue]
    return page(
        request,
        services,
        caller,
        "review.html",
        REVIEW.name,
        entries=[_entry(services, job) for job in await list_held(services, caller, queue, filters)],
        depths=depths,
        waiting=sum(depth.held for depth in chosen),
        is_capped=any(depth.held_is_capped for depth in chosen),
        queue=queue,
        skip=skip,
        card=card,
        count=count_words,
        reasons=await list_reasons(services, caller),
        undo=await _undoable(services, caller, decided),
        address=address_of(request),
        now=services.clock(),
    )


def _entry(services: Services, job: Job) -> QueueEntry:
    return QueueEntry(
        job=job,
        text=" ".join(question_of(job)[:300].split()),
        priority=job.priority if job.review_priority is None else job.review_priority,
        opened_by=_opener(services, job),
    )


def _opener(services: Services, job: Job) -> str | None:
    return job.review_lease if (job.review_lease_until or 0) > services.clock() else None


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


async def _card(services: Services, caller: Caller, job: Job) -> HeldCard:
    shown, draft = shown_answer(job), job.draft or Edit()
    whole_input = transcript(job.body)
    new_input: Sequence[TranscriptEntry] = [] if draft.payload is None else transcript(draft.payload.encode())
    details, answer, original = answer_details(shown), shown_text(shown), shown_text(job.response)
    length = sum(len(entry.text) for entry in [*whole_input, *new_input]) + len(details or "")
    return HeldCard(
        job=job,
        asker=await asker_of(services, caller, job),
        answer=answer,
        original=original,
        changes=await asyncio.to_thread(difference, original, answer) if answer != original else [],
        input=cut(whole_input),
        new_input=cut(list(new_input)),
        details=details and details[:MAX_SHOWN],
        has_draft=draft.response is not None,
        is_cut=length > MAX_SHOWN,
        caller_left_at=(await departed_callers(services, [job])).get(job.id),
        seen=_digest(job),
        opened_by=_opener(services, job),
        signals={} if job.ruling is None else job.ruling.signals,
        votes=votes_needed(job),
    )


def _edited(job: Job, text: str) -> Edit:
    """Return the edit that makes `text` the text of the answer, or of its draft; none if it is that already.

    An answer that has no text is shown as JSON, and so is its edit.
    """
    shown = shown_answer(job)
    if text == shown_text(shown):
        return Edit() if job.draft is None or job.draft.response is None else Edit(response=job.draft.response)
    is_json = shown is not None and describe_binary(shown) is None and answer_text(shown) is None and _is_json(text)
    return Edit(response=text if is_json else msgspec.json.encode(text).decode())


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _digest(job: Job) -> str:
    return fingerprint(job.response or b"", msgspec.json.encode(job.draft))


router = Router(
    "/",
    route_handlers=[
        show_review,
        show_item,
        post_next,
        post_skip,
        post_open,
        post_leave,
        post_undo,
        post_draft,
        post_verdict,
    ],
)
