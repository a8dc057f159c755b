"""The page of review queues and of the reasons for rejections, for admins."""

import re
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller, check_admin
from signoff.core.reviews.queues import ReviewQueue
from signoff.dashboard.shell import QUEUES, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_fields, parse_form
from signoff.errors import BadRequest, SignoffError
from signoff.work.reviews.history import queue_depths
from signoff.work.reviews.queues import (
    QueueChange,
    list_queues,
    list_reasons,
    put_queue,
    put_reasons,
    remove_queue,
)
from signoff.work.services import Services


class QueueForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form of a queue."""

    name: str = ""
    """Name of the queue."""
    members: str = ""
    """Emails of its reviewers, separated by white space or commas."""
    emails: str = ""
    """Addresses that get digests, separated likewise."""
    digest_seconds: str = "300"
    """Seconds between two digests."""
    ageing_seconds: str = ""
    """Seconds after which an answer is reported as ageing; empty for never."""
    webhook: str = ""
    """URL of a new receiver of digests; empty to keep the present one."""
    secret: str = ""
    """Secret of the new receiver; empty for that of the server."""
    drop_webhook: str = ""
    """Not empty to send digests to no webhook any more."""


@get("/dashboard/queues", include_in_schema=False, media_type=MediaType.HTML)
async def show_queues(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromQuery[str] = ""
) -> Template:
    """Show all queues with what waits in them, and the reasons; `name` fills the form with a queue."""
    return await _queues_page(request, services, caller, name=name)


@post("/dashboard/queues", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_queue(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Create or change a queue, and show all; or show the form again with what is wrong."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), QueueForm, "review queue")
    try:
        await put_queue(services, caller, form.name.strip(), _change_of(form))
    except SignoffError as error:
        return await _queues_page(request, services, caller, form=form, error=error)
    return redirect(QUEUES.path)


@post("/dashboard/queues/delete", include_in_schema=False, status_code=303)
async def post_removal(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Remove a queue, and show the others; admins still see what waits in it."""
    check_same_site(scope_of(request))
    await remove_queue(services, caller, parse_form(await request.body(), QueueForm, "review queue").name)
    return redirect(QUEUES.path)


@post("/dashboard/queues/reasons", include_in_schema=False, status_code=303)
async def post_reasons(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Replace the reasons for rejections by the lines of the form."""
    check_same_site(scope_of(request))
    text = parse_form(await request.body(), dict[str, str], "list of reasons").get("reasons", "")
    await put_reasons(services, caller, [line for line in text.splitlines() if line.strip()])
    return redirect(f"{QUEUES.path}#reasons")


async def _queues_page(
    request: AnyRequest,
    services: Services,
    caller: Caller,
    *,
    name: str = "",
    form: QueueForm | None = None,
    error: SignoffError | None = None,
) -> Template:
    check_admin(caller)
    queues = await list_queues(services, caller)
    chosen = next((queue for queue in queues if queue.name == (form.name if form else name)), None)
    depths = {depth.queue: depth for depth in await queue_depths(services, caller)}
    shown = page(
        request,
        services,
        caller,
        "queues.html",
        QUEUES.name,
        queues=[_row(queue, depths) for queue in queues],
        others=[depth for name, depth in depths.items() if name and name not in {queue.name for queue in queues}],
        reasons=await list_reasons(services, caller),
        chosen=chosen,
        form=form or (QueueForm(name=name) if chosen is None else _form_of(chosen)),
        error=error and error.message,
    )
    return with_status(shown, error)


def _row(queue: ReviewQueue, depths: dict[str, Any]) -> dict[str, Any]:
    return {"queue": queue, "depth": depths.get(queue.name), "query": urlencode({"name": queue.name})}


def _form_of(queue: ReviewQueue) -> QueueForm:
    return QueueForm(
        name=queue.name,
        members="\n".join(queue.members),
        emails="\n".join(queue.emails),
        digest_seconds=f"{queue.digest_seconds:g}",
        ageing_seconds="" if queue.ageing_seconds is None else f"{queue.ageing_seconds:g}",
    )


def _change_of(form: QueueForm) -> QueueChange:
    """Return the change that the form describes. Raises BadRequest."""
    fields: dict[str, Any] = {
        "members": _words(form.members),
        "emails": _words(form.emails),
        "digest_seconds": _seconds("digest_seconds", form.digest_seconds),
        "ageing_seconds": _seconds("ageing_seconds", form.ageing_seconds) if form.ageing_seconds.strip() else None,
    }
    if form.webhook.strip():
        fields["webhook"] = {"url": form.webhook.strip(), "secret": form.secret.strip() or None}
    elif form.drop_webhook:
        fields["webhook"] = None
    return parse_fields(fields, QueueChange, "review queue")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", text) if word]


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"`{name}` must be a number of seconds (got {text!r}).") from None


router = Router("/", route_handlers=[show_queues, post_queue, post_removal, post_reasons])
