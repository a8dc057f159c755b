"""The first page: counts of jobs, held answers with a form to review them, the latest jobs, and the models."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.response import Template
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from signoff.core.access import Caller, may_review
from signoff.core.answer import answer_text, with_text
from signoff.core.ask import as_chat
from signoff.core.binary import describe_binary
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Edit, Job, Verdict
from signoff.core.wire import format_time
from signoff.doors.callers import caller_of, check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import INTS, header, parse_digits, parse_form, scheme_of
from signoff.doors.session import end_session
from signoff.errors import BadRequest, LimitReached, Unauthorized
from signoff.work.admin.registry import all_models
from signoff.work.jobs.query import count_jobs, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide
from signoff.work.services import Services

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 10
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
    """Text of the answer; empty if there is none."""
    error: str
    """Message of the error; empty if there is none."""


@get("/", include_in_schema=False, media_type=MediaType.HTML)
async def show_home(request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings) -> Template:
    """Show the page; a visitor who is not signed in sees how to sign in."""
    address = f"{scheme_of(scope_of(request))}://{header(scope_of(request), b'host') or 'localhost'}"
    caller: Caller | None = None
    with contextlib.suppress(Unauthorized):
        caller = await caller_of(services, door_settings, scope_of(request))
    context: dict[str, Any] = {"address": address, "caller": caller, "error": _sign_in_error(request)}
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
    job = await get_job(services, caller, form.get("id", ""))
    text = form.get("answer", "").replace("\r\n", "\n")
    is_edited = verdict == "approve" and text != _answer(job)
    edit = Edit(response=with_text(job.response or b"null", text).decode()) if is_edited else Edit()
    verdict_request = VerdictRequest(verdict=verdict, reason=form.get("reason") or None, edit=edit, round=round_)
    await decide(services, caller, job.id, verdict_request)
    return Response("", status_code=303, headers={"location": "/"})


@post("/dashboard/sign-out", include_in_schema=False, status_code=303)
async def post_sign_out(request: AnyRequest, services: InjectedServices) -> Response[str]:
    """End the session, also one that is over already, and redirect to the page."""
    check_same_site(scope_of(request))
    response = await end_session(request, services)
    return Response("", status_code=303, headers=response.headers | {"location": "/"})


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
        "held": [_card(job) for job in held],
        "latest": [_card(job) for job in latest],
        "may_review": may_review(caller),
        "models": await all_models(services),
    }


def _card(job: Job) -> Card:
    return Card(
        id=job.id,
        status=job.status,
        model=job.target,
        created_at=format_time(job.created_at),
        round=job.round,
        question=_question(job),
        answer=_answer(job),
        error=job.error.message if job.error else "",
    )


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


def _answer(job: Job) -> str:
    """Return the text of the answer, with the line ends that `post_verdict` compares with."""
    if job.response is None:
        return ""
    text = describe_binary(job.response) or answer_text(job.response)
    return (job.response.decode(errors="replace") if text is None else text).replace("\r\n", "\n")


router = Router("/", route_handlers=[show_home, post_verdict, post_sign_out])
static = create_static_files_router("/static", directories=[Path(__file__).parent / "static"], include_in_schema=False)
