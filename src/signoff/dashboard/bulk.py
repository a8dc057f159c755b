"""Bulk decisions on the desk: choose held answers by what they have in common, see them, decide on all, undo all."""

import contextlib
from typing import Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.job import Job
from signoff.core.reviews.bulk import MAX_BULK, Bulk, BulkItem, BulkState, SignalsCondition
from signoff.core.reviews.item import question_of
from signoff.core.reviews.queues import ReviewFilter
from signoff.dashboard.content import answer_of_job
from signoff.dashboard.desk_queue import AGES, view_of
from signoff.dashboard.jobs import StateLabel
from signoff.dashboard.review import DECIDED, VERDICTS
from signoff.dashboard.shell import REVIEW, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_digits, parse_fields, parse_form
from signoff.doors.reviews import BulkRequest
from signoff.errors import BadRequest, JobNotFound, SignoffError
from signoff.work.jobs.query import get_job
from signoff.work.reviews.bulk import BulkSelection, apply_bulk, get_bulk, select_bulk, undo_bulk
from signoff.work.reviews.history import list_held, queue_depths, with_queues
from signoff.work.reviews.queues import list_reasons
from signoff.work.services import Services

PATH = f"{REVIEW.path}/bulk"
MAX_SHOWN, MAX_SUGGESTED = 50, 100
MAX_TEXT = 1000
COMPARISONS = {"at_least": "is at least", "at_most": "is at most", "equals": "is"}
LABELS: dict[BulkState, StateLabel] = {
    "selected": StateLabel("Selected", "ring", ""),
    "decided": StateLabel("Decided", "check", "ok"),
    "skipped": StateLabel("Left out", "skip", "hold"),
    "undone": StateLabel("Undone", "undo", ""),
}


class BulkForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form that selects answers."""

    verdict: str = "approve"
    """Verdict on all of them."""
    reason: str = ""
    """Reason for it."""
    queue: str = ""
    """Review queue; empty for all queues of the reviewer."""
    target: str = ""
    """Model, prompt or pipeline that was requested; empty for any."""
    policy: str = ""
    """Policy that holds the answers; empty for any."""
    signal: str = ""
    """Signal of the answers; empty for none."""
    comparison: str = "at_least"
    """Comparison of the signal, one of COMPARISONS."""
    value: str = ""
    """Value that the signal is compared with."""
    signal_2: str = ""
    """Second signal, with the next two."""
    comparison_2: str = "at_most"
    """Comparison of the second signal."""
    value_2: str = ""
    """Value that the second signal is compared with."""
    age: str = ""
    """Seconds since the hold; empty for any time."""

    def conditions(self) -> tuple[SignalsCondition, ...]:
        """Return the conditions on signals. Raises BadRequest."""
        rows = ((self.signal, self.comparison, self.value), (self.signal_2, self.comparison_2, self.value_2))
        return tuple(_condition(name.strip(), comparison, value.strip()) for name, comparison, value in rows if name)


def _condition(name: str, comparison: str, text: str) -> SignalsCondition:
    """Return the condition that a row of the form describes. Raises BadRequest."""
    try:
        value = msgspec.json.decode(text, type=bool | float)
    except msgspec.DecodeError:
        value = text
    if comparison == "equals" and text:
        return SignalsCondition(name=name, equals=value)
    if not isinstance(value, float) or comparison not in COMPARISONS:
        raise BadRequest(f"The value of the signal `{name}` must be a number to be compared (got {text!r}).")
    at_least = value if comparison == "at_least" else None
    return SignalsCondition(name=name, at_least=at_least, at_most=None if comparison == "at_least" else value)


@get(PATH, include_in_schema=False, media_type=MediaType.HTML)
async def show_bulk_form(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show the form that selects answers, with the filters of the desk that the address has."""
    view = view_of(request.query_params)
    form = BulkForm(queue=view.queue, target=view.target, age=view.age)
    return await _form_page(request, services, caller, form)


@post(PATH, include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_selection(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Select answers, and show which they are; nothing is decided yet."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), BulkForm, "bulk decision")
    try:
        bulk = await select_bulk(services, caller, await _selection(services, caller, form))
    except SignoffError as error:
        return await _form_page(request, services, caller, form, error)
    return redirect(f"{PATH}/{bulk.id}")


@get(f"{PATH}/{{bulk_id:str}}", include_in_schema=False, media_type=MediaType.HTML)
async def show_bulk(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    bulk_id: FromPath[str],
    start: FromQuery[str] = "",
) -> Template:
    """Show the selected answers; once the decisions are made, with the outcome of each."""
    bulk, first = await get_bulk(services, caller, bulk_id), min(parse_digits(start) or 0, MAX_BULK)
    rows = [await _row(services, caller, item) for item in bulk.items[first : first + MAX_SHOWN]]
    states = [item.state for item in bulk.items]
    ends = [row["job"].release_at for row in rows if row["job"] is not None and row["item"].state == "decided"]
    left_us = max((end for end in ends if end is not None), default=0) - services.clock()
    return page(
        request,
        services,
        caller,
        "bulk.html",
        REVIEW.name,
        bulk=bulk,
        count=len(states),
        counts={state: states.count(state) for state in LABELS},
        is_applied=any(state != "selected" for state in states),
        undo_seconds=max(0, round(left_us / 1_000_000)),
        rows=rows,
        first=first,
        next_start=first + MAX_SHOWN if first + MAX_SHOWN < len(states) else None,
        verdicts=DECIDED,
    )


@post(f"{PATH}/{{bulk_id:str}}/apply", include_in_schema=False, status_code=303)
async def post_apply(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, bulk_id: FromPath[str]
) -> Response[str]:
    """Decide on all selected answers, and show the outcome of each."""
    check_same_site(scope_of(request))
    return _to_bulk(await apply_bulk(services, caller, bulk_id))


@post(f"{PATH}/{{bulk_id:str}}/undo", include_in_schema=False, status_code=303)
async def post_undo(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, bulk_id: FromPath[str]
) -> Response[str]:
    """Undo every decision that has not taken effect, and show the outcome of each."""
    check_same_site(scope_of(request))
    return _to_bulk(await undo_bulk(services, caller, bulk_id))


async def _form_page(
    request: AnyRequest, services: Services, caller: Caller, form: BulkForm, error: SignoffError | None = None
) -> Template:
    held = await list_held(services, caller, None, ReviewFilter(queues=(), limit=MAX_SUGGESTED))
    shown = page(
        request,
        services,
        caller,
        "bulk_form.html",
        REVIEW.name,
        form=form,
        error=error and error.message,
        depths=await queue_depths(services, caller),
        targets=sorted({job.target for job in held}),
        policies=sorted({job.ruling.policy for job in held if job.ruling is not None and job.ruling.policy}),
        signals=sorted({name for job in held if job.ruling is not None for name in job.ruling.signals}),
        comparisons=COMPARISONS,
        ages=AGES,
        reasons=await list_reasons(services, caller),
        max_answers=MAX_BULK,
    )
    return with_status(shown, error)


async def _selection(services: Services, caller: Caller, form: BulkForm) -> BulkSelection:
    verdict = VERDICTS.get(form.verdict)
    if verdict is None:
        raise BadRequest("The form needs a valid `verdict`; reload the page and try again.")
    filters = ReviewFilter(
        queues=(),
        target=form.target.strip() or None,
        min_age_seconds=float(form.age) if form.age in AGES else None,
        limit=MAX_BULK,
    )
    fields = {"verdict": verdict, "reason": form.reason.strip() or None, "policy": form.policy.strip() or None}
    new = parse_fields(fields, BulkRequest, "bulk decision")
    return BulkSelection(
        filters=await with_queues(services, caller, form.queue or None, filters),
        policy=new.policy,
        signals=form.conditions(),
        verdict=verdict,
        reason=new.reason,
    )


async def _row(services: Services, caller: Caller, item: BulkItem) -> dict[str, Any]:
    job: Job | None = None
    with contextlib.suppress(JobNotFound):
        job = await get_job(services, caller, item.job_id)
    question, answer = ("", "") if job is None else (question_of(job), answer_of_job(job))
    return {
        "item": item,
        "job": job,
        "state": LABELS[item.state],
        "question": " ".join(question[:MAX_TEXT].split()),
        "answer": " ".join(answer[:MAX_TEXT].split()),
    }


def _to_bulk(bulk: Bulk) -> Response[str]:
    return redirect(f"{PATH}/{bulk.id}")


router = Router("/", route_handlers=[show_bulk_form, post_selection, show_bulk, post_apply, post_undo])
