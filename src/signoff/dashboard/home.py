"""The first page: counts of jobs, held answers with a form to review them, the latest jobs, and the models."""

import contextlib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

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
from signoff.doors.callers import caller_of
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import INTS, header, parse_digits, scheme_of
from signoff.errors import BadRequest, Unauthorized
from signoff.work.admin.registry import all_models
from signoff.work.jobs.query import count_jobs, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide
from signoff.work.services import Services

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 10
VERDICTS: dict[str, Verdict] = {"approve": "approve", "redo": "redo", "reject": "reject"}
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
    context: dict[str, Any] = {"address": address, "caller": caller}
    if caller is not None:
        context |= await _jobs_and_models(services, caller)
    return Template("home.html", context=context, headers=SECURITY_HEADERS)


@post("/dashboard/decide", include_in_schema=False, status_code=303)
async def post_verdict(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Apply a verdict from the page's form, and redirect to the page."""
    form = _parse_form(await request.body())
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


def _parse_form(body: bytes) -> dict[str, str]:
    try:
        return {name: values[0] for name, values in parse_qs(body.decode(), errors="strict").items()}
    except ValueError as error:
        raise BadRequest(f"The form is not URL-encoded UTF-8: {error}.") from None


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


router = Router("/", route_handlers=[show_home, post_verdict])
static = create_static_files_router("/static", directories=[Path(__file__).parent / "static"], include_in_schema=False)
