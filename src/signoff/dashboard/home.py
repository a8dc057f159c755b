"""The first page: counts of jobs, held answers with a form to review them, the latest jobs, and the models."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.response import Template
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from signoff.core.access import Caller, may_review
from signoff.core.ask import as_chat
from signoff.core.binary import describe_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import edited_answer
from signoff.core.dialects.transcript import TranscriptEntry, answer_details, transcript
from signoff.core.filters import JobFilter
from signoff.core.fingerprint import fingerprint
from signoff.core.job import STATUSES, Edit, Job, Verdict
from signoff.core.wire import format_time
from signoff.doors.callers import caller_of, check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import INTS, MOUNT, header, parse_digits, parse_form, scheme_of
from signoff.doors.session import end_session
from signoff.errors import BadRequest, LimitReached, Stale, Unauthorized
from signoff.work.admin.registry import all_models
from signoff.work.jobs.query import count_jobs, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide
from signoff.work.services import Services

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 10
# Characters of the input of one job, beyond which the page links to the job.
MAX_SHOWN = 100_000
VERDICTS: dict[str, Verdict] = {"approve": "approve", "redo": "redo", "reject": "reject"}
SIGN_IN_ERRORS = {
    BadRequest.code: "Fill in the e-mail address and the password.",
    LimitReached.code: "There were too many sign-ins.",
    Unauthorized.code: "The e-mail address or the password is wrong.",
}
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Job in the form in which the page shows it."""

    id: str
    """Id of the job."""
    status: str
    """Status of the job."""
    model: str
    """Name of the model, prompt or pipeline that the caller named."""
    created_at: str
    """Time of creation (RFC 3339, UTC)."""
    round: int
    """Number of the review round, which the form sends back."""
    question: str
    """Text of the last message of the request, else the request itself."""
    answer: str
    """Text of the answer, or of the saved draft of it; empty if there is none."""
    error: str
    """Message of the error; empty if there is none."""


class HeldCard(Card, frozen=True, kw_only=True):
    """Held job, with all that a reviewer signs off."""

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


@get("/", include_in_schema=False, media_type=MediaType.HTML)
async def show_home(request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings) -> Template:
    """Show the page; a visitor who is not signed in sees how to sign in."""
    root = scope_of(request).get(MOUNT, "")
    address = f"{scheme_of(scope_of(request))}://{header(scope_of(request), b'host') or 'localhost'}{root}"
    caller: Caller | None = None
    with contextlib.suppress(Unauthorized):
        caller = await caller_of(services, door_settings, scope_of(request))
    context: dict[str, Any] = {"address": address, "root": root, "caller": caller, "error": _sign_in_error(request)}
    if caller is not None:
        context |= await _jobs_and_models(services, caller)
    return Template("home.html", context=context, headers=SECURITY_HEADERS)


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
    return Response("", status_code=303, headers={"location": "/"})


@post("/dashboard/sign-out", include_in_schema=False, status_code=303)
async def post_sign_out(request: AnyRequest, services: InjectedServices) -> Response[str]:
    """End the session, also one that is over already, and redirect to the page."""
    check_same_site(scope_of(request))
    response = await end_session(request, services)
    return Response("", status_code=303, headers=response.headers | {"location": "/"})


def _edited(job: Job, text: str) -> Edit:
    """Return the edit that makes `text` the text of the answer, or of its draft; none if it is that already.

    An answer that has no text is shown as JSON, and so is its edit.
    """
    shown = _shown_answer(job)
    if text == _answer(shown):
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


def _sign_in_error(request: AnyRequest) -> str | None:
    """Return the text for the error of a sign-in; None if there is none. No part of the query is shown as it is."""
    text = SIGN_IN_ERRORS.get(request.query_params.get("error", ""))
    seconds = parse_digits(request.query_params.get("retry_after"))
    return text if text is None or seconds is None else f"{text} You can try again in {min(seconds, INTS)} seconds."


async def _jobs_and_models(services: Services, caller: Caller) -> dict[str, Any]:
    held = await list_jobs(services, caller, JobFilter(status="human", limit=MAX_LISTED))
    latest = await list_jobs(services, caller, JobFilter(limit=MAX_LISTED, newest_first=True))
    return {
        "totals": {status: await count_jobs(services, caller, JobFilter(status=status)) for status in STATUSES},
        "held": [_held_card(job) for job in held],
        "latest": [_card(job) for job in latest],
        "may_review": may_review(caller),
        "models": await all_models(services),
    }


def _card(job: Job) -> Card:
    return Card(**_fields(job), question=_question(job), answer=_answer(job.response))


def _held_card(job: Job) -> HeldCard:
    shown, draft = _shown_answer(job), job.draft or Edit()
    whole_input = transcript(job.body)
    new_input = [] if draft.payload is None else transcript(draft.payload.encode())
    details = answer_details(shown)
    length = sum(len(entry.text) for entry in whole_input + new_input) + len(details or "")
    return HeldCard(
        **_fields(job),
        question=_question(job),
        answer=_answer(shown),
        input=_cut(whole_input),
        new_input=_cut(new_input),
        details=details and details[:MAX_SHOWN],
        has_draft=draft.response is not None,
        is_cut=length > MAX_SHOWN,
        seen=_digest(job),
    )


def _fields(job: Job) -> dict[str, Any]:
    """Return the fields of a card that are the same for all jobs."""
    error, created_at = job.error.message if job.error else "", format_time(job.created_at)
    fields = {"id": job.id, "status": job.status, "model": job.target, "created_at": created_at}
    return fields | {"round": job.round, "error": error}


def _cut(entries: list[TranscriptEntry]) -> list[TranscriptEntry]:
    """Return the entries up to MAX_SHOWN characters."""
    shown, left = list[TranscriptEntry](), MAX_SHOWN
    for entry in entries:
        if left <= 0:
            break
        shown.append(entry._replace(text=entry.text[:left]))
        left -= len(entry.text)
    return shown


class _Message(msgspec.Struct):
    content: Any = None


class _Chat(msgspec.Struct):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


def _question(job: Job) -> str:
    if (binary := describe_binary(job.body)) is not None:
        return binary
    try:
        content = msgspec.json.decode(as_chat(job.body), type=_Chat).messages[-1].content
    except (ValueError, RecursionError):
        return job.body.decode(errors="replace")
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _answer(answer: bytes | None) -> str:
    """Return the text of an answer, with the line ends that `post_verdict` compares with."""
    if answer is None:
        return ""
    text = describe_binary(answer) or answer_text(answer)
    return (answer.decode(errors="replace") if text is None else text).replace("\r\n", "\n")


router = Router("/", route_handlers=[show_home, post_verdict, post_sign_out])
static = create_static_files_router("/static", directories=[Path(__file__).parent / "static"], include_in_schema=False)
