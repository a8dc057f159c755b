"""The page of jobs: filters in the address, views that users save, a cursor, and the latest jobs first."""

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.job import STATUSES, Job, Status
from signoff.core.reviews.item import question_of
from signoff.core.saved_views import SavedView
from signoff.dashboard.content import answer_of_job
from signoff.dashboard.shell import JOBS, address_of, page, redirect
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits, parse_form
from signoff.doors.usage import parse_microseconds
from signoff.errors import BadRequest
from signoff.work.admin.views import drop_view, list_views, save_view
from signoff.work.batches.manage import list_lines
from signoff.work.jobs.search import JobSearch, SearchResult, list_steps, search_jobs
from signoff.work.services import Services

VIEWS = "jobs"
# Filters that the page shows under "More filters".
_MORE = (
    "model",
    "door",
    "user",
    "token",
    "prompt",
    "prompt_version",
    "cache",
    "since",
    "until",
    "run",
    "batch",
    "order",
)
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
MAX_LISTED = 50


class StateLabel(NamedTuple):
    """Label of a status: a word and an icon, so that nobody has to tell colours apart."""

    word: str
    icon: str
    """Name of a symbol in `icons.html`."""
    colour: str
    """Class of the style sheet; empty for the usual colour."""


LABELS: dict[Status, StateLabel] = {
    "bot": StateLabel("In progress", "run", "run"),
    "human": StateLabel("In review", "pause", "hold"),
    "success": StateLabel("Answered", "check", "ok"),
    "fail": StateLabel("Failed", "x", "bad"),
}


def state_of(job: Job) -> StateLabel:
    """Return the label of the state of `job`; a job that waits for its turn is queued."""
    if job.status == "bot" and job.parked_at is not None:
        return StateLabel("Waits for its steps", "pause", "hold")
    if job.status == "bot" and job.lease is None:
        return StateLabel("Queued", "ring", "")
    return LABELS[job.status]


class JobForm(msgspec.Struct, frozen=True, kw_only=True):
    """Filters in the address of the page; an empty text is none."""

    status: str = ""
    """Status of the jobs."""
    q: str = ""
    """Text in a request or an answer, or an id."""
    target: str = ""
    """Model, prompt or pipeline that was requested."""
    model: str = ""
    """Model that answered."""
    door: str = ""
    """Door that took the request."""
    user: str = ""
    """Email of the owner."""
    token: str = ""
    """Id of the token."""
    prompt: str = ""
    """Prompt."""
    prompt_version: str = ""
    """Version of the prompt."""
    cache: str = ""
    """Use of the response cache."""
    since: str = ""
    """Earliest time, UTC."""
    until: str = ""
    """Time before which the jobs were received, UTC."""
    run: str = ""
    """Run whose steps are listed, and nothing else."""
    batch: str = ""
    """Batch whose lines are listed in order, and nothing else."""
    order: str = ""
    """`cost` for the most expensive first."""
    after: str = ""
    """Cursor."""


@get("/dashboard/jobs", include_in_schema=False, media_type=MediaType.HTML)
async def show_jobs(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Show a page of the jobs that the caller may see, newest first; the id of a job leads to it."""
    fields = msgspec.convert(dict(request.query_params), JobForm, strict=False)
    if _ID.fullmatch(fields.q.strip()):
        return redirect(f"{JOBS.path}/{fields.q.strip().lower()}")
    search = _search_of(fields)
    if fields.run:
        steps = await list_steps(services, caller, fields.run.strip())
        result = SearchResult(jobs=steps, examined=len(steps), next_id=None, reached_at=None)
    elif fields.batch:
        result = await _lines(services, caller, fields)
    else:
        result = await search_jobs(services, caller, search)
    query = _query(fields)
    return page(
        request,
        services,
        caller,
        "jobs.html",
        JOBS.name,
        rows=[_row(job) for job in result.jobs],
        labels=LABELS,
        fields=fields,
        query=query,
        others=[name for name in _MORE if getattr(fields, name)],
        is_first=not fields.after,
        is_live=not fields.after and search.is_indexed and not fields.run,
        is_filtered=bool(query),
        result=result,
        is_search=not search.is_indexed,
        next_query=result.next_id and urlencode([*parse_qsl(query), ("after", result.next_id)]),
        views=await list_views(services, caller, VIEWS),
        may_save=not caller.is_anonymous,
        address=address_of(request),
    )


@post("/dashboard/jobs/views", include_in_schema=False, status_code=303)
async def post_view(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Save the filters of the form under a name, or delete a view, and show the jobs."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), dict[str, str], "view")
    name, fields = form.get("name", "").strip(), dict(parse_qsl(form.get("query", "")))
    query = _query(msgspec.convert(fields, JobForm))
    if form.get("action") == "delete":
        await drop_view(services, caller, VIEWS, name)
    else:
        await save_view(services, caller, SavedView(page=VIEWS, name=name, query=query))
    return redirect(f"{JOBS.path}?{query}" if query else JOBS.path)


async def _lines(services: Services, caller: Caller, fields: JobForm) -> SearchResult:
    """Return a page of the lines of a batch; its cursor is the number of the last one."""
    after_line = _number("after", fields.after) or 0
    lines = await list_lines(services, caller, fields.batch.strip(), after_line, MAX_LISTED)
    next_id = str(lines[-1].batch_line) if lines.may_continue else None
    return SearchResult(jobs=list(lines), examined=len(lines), next_id=next_id, reached_at=None)


def _query(fields: JobForm) -> str:
    """Return the query of the address with these filters, from the first page on."""
    members = msgspec.structs.asdict(fields)
    return urlencode({name: value for name, value in members.items() if value and name != "after"})


def _search_of(fields: JobForm) -> JobSearch:
    """Return the search for the filters of the address. Raises BadRequest."""
    status: Status | None = next((each for each in STATUSES if each == fields.status), None)
    names = ("user", "target", "model", "door", "prompt", "cache")
    return JobSearch(
        status=status,
        **{name: getattr(fields, name).strip() for name in names},
        text=fields.q.strip(),
        token=_number("token", fields.token),
        prompt_version=_number("prompt_version", fields.prompt_version),
        since=parse_microseconds("since", fields.since) if fields.since else None,
        until=parse_microseconds("until", fields.until) if fields.until else None,
        after_id=fields.after or None,
        limit=MAX_LISTED,
        by_cost=fields.order == "cost",
    )


def _number(name: str, text: str) -> int | None:
    if not text.strip():
        return None
    number = parse_digits(text.strip())
    if number is None or number >= INTS:
        raise BadRequest(f"`{name}` must be a whole number (got {text!r}).")
    return number


def _row(job: Job) -> dict[str, Any]:
    question = " ".join(question_of(job)[:400].split())
    return {"job": job, "state": state_of(job), "question": question, "answer": _result(job)}


def _result(job: Job) -> str:
    text = job.error.message if job.error and job.status == "fail" else answer_of_job(job)
    return " ".join(text[:400].split())


router = Router("/", route_handlers=[show_jobs, post_view])
