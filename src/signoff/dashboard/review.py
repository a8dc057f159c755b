"""The review page: held answers, each with everything that is signed off, and a form for the verdict."""

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.response import Template

from signoff.core.access import check_may_review
from signoff.core.binary import describe_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import edited_answer
from signoff.core.dialects.transcript import TranscriptEntry, answer_details, transcript
from signoff.core.filters import JobFilter
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Edit, Job, Verdict
from signoff.dashboard.content import MAX_SHOWN, cut, shown_text
from signoff.dashboard.shell import REVIEW, address_of, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_digits, parse_form
from signoff.errors import BadRequest, Stale
from signoff.work.jobs.query import count_jobs, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide

MAX_LISTED = 10
VERDICTS: dict[str, Verdict] = {"approve": "approve", "redo": "redo", "reject": "reject"}


class HeldCard(msgspec.Struct, frozen=True, kw_only=True):
    """Held job, with all that a reviewer signs off."""

    job: Job
    """The job."""
    answer: str
    """Text of the answer, or of the saved draft of it."""
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
    seen: str
    """Digest of the answer and the draft that are shown, which the form sends back."""


@get("/dashboard/review", include_in_schema=False, media_type=MediaType.HTML)
async def show_review(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show the held answers, oldest first."""
    check_may_review(caller)
    held = await list_jobs(services, caller, JobFilter(status="human", limit=MAX_LISTED))
    return page(
        request,
        services,
        caller,
        "review.html",
        REVIEW.name,
        held=[_held_card(job) for job in held],
        total=await count_jobs(services, caller, JobFilter(status="human")),
        address=address_of(request),
    )


@post("/dashboard/decide", include_in_schema=False, status_code=303)
async def post_verdict(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Apply a verdict from the page's form, and redirect to the page."""
    form = parse_form(await request.body(), dict[str, str], "verdict")
    verdict, round_ = VERDICTS.get(form.get("verdict", "")), parse_digits(form.get("round"))
    if verdict is None or round_ is None or round_ >= INTS:
        raise BadRequest("The form needs a valid `verdict` and `round`; reload the page and try again.")
    job, reason = await get_job(services, caller, form.get("id", "")), form.get("reason", "").strip()
    if verdict == "reject" and not reason:
        raise BadRequest("`reason` is needed to reject an answer: its caller gets it. Go back and fill it in.")
    if form.get("seen") != _digest(job):
        raise Stale("The answer or its draft changed since the page was loaded; reload it, and look again.")
    edit = _edited(job, form.get("answer", "").replace("\r\n", "\n")) if verdict == "approve" else Edit()
    await decide(
        services, caller, job.id, VerdictRequest(verdict=verdict, reason=reason or None, edit=edit, round=round_)
    )
    return Response("", status_code=303, headers={"location": REVIEW.path})


def _edited(job: Job, text: str) -> Edit:
    """Return the edit that makes `text` the text of the answer, or of its draft; none if it is that already.

    An answer that has no text is shown as JSON, and so is its edit.
    """
    shown = _shown_answer(job)
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


def _shown_answer(job: Job) -> bytes | None:
    """Return the answer that an approval sends: with the saved draft, else that of the model."""
    if job.draft is None or job.draft.response is None:
        return job.response
    return edited_answer(job, job.draft.response.encode())


def _digest(job: Job) -> str:
    return fingerprint(job.response or b"", msgspec.json.encode(job.draft))


def _held_card(job: Job) -> HeldCard:
    shown, draft = _shown_answer(job), job.draft or Edit()
    whole_input = transcript(job.body)
    new_input = [] if draft.payload is None else transcript(draft.payload.encode())
    details = answer_details(shown)
    length = sum(len(entry.text) for entry in whole_input + new_input) + len(details or "")
    return HeldCard(
        job=job,
        answer=shown_text(shown),
        input=cut(whole_input),
        new_input=cut(new_input),
        details=details and details[:MAX_SHOWN],
        has_draft=draft.response is not None,
        is_cut=length > MAX_SHOWN,
        seen=_digest(job),
    )


router = Router("/", route_handlers=[show_review, post_verdict])
