"""The pages of batches: upload a file of requests, watch them being answered, and download the results."""

import contextlib
from typing import Any

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT
from signoff.core.batch import Batch, BatchApi, BatchFilter, BatchStatus, BatchTotals, StoredFile
from signoff.dashboard.jobs import StateLabel
from signoff.dashboard.shell import BATCHES, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import RECEIVE, DoorSettings
from signoff.doors.openai.files import LocalRequest, Upload
from signoff.errors import BadRequest, Conflict, NotFound, SignoffError
from signoff.work.batches.files import BlobWriter, UploadFields, find_file, store_upload
from signoff.work.batches.manage import (
    ENDPOINTS,
    cancel_batch,
    check_open_batches,
    create_batch,
    find_batch,
    list_batches,
    new_batch_id,
    owner_of,
    totals_of,
    waiting_lines,
)
from signoff.work.services import Services

MAX_LISTED = 25
APIS: dict[BatchApi, str] = {"openai": "OpenAI", "anthropic": "Anthropic"}
LABELS: dict[BatchStatus, StateLabel] = {
    "validating": StateLabel("Checking", "run", "run"),
    "failed": StateLabel("Not valid", "x", "bad"),
    "in_progress": StateLabel("In progress", "run", "run"),
    "finalizing": StateLabel("Writing results", "run", "run"),
    "completed": StateLabel("Completed", "check", "ok"),
    "expired": StateLabel("Expired", "clock", "hold"),
    "cancelling": StateLabel("Cancelling", "stop", "hold"),
    "cancelled": StateLabel("Cancelled", "stop", ""),
}
EXAMPLE = """{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
 "body": {"model": "MODEL", "messages": [{"role": "user", "content": "Say hello."}]}}"""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of a batch's requests, by their state."""

    total: int
    """Number of requests; 0 before the file was checked."""
    completed: int
    """Number of requests with an answer."""
    failed: int
    """Number of requests that ended without an answer."""
    held: int
    """Number of requests whose answers wait for a review."""

    @property
    def parts(self) -> list[tuple[str, float, float]]:
        """Bars of the drawing: colour, start and width, in percent of all requests."""
        parts, start = list[tuple[str, float, float]](), 0.0
        for colour, number in (("ok", self.completed), ("bad", self.failed), ("hold", self.held)):
            width = 100 * number / max(self.total, 1)
            parts.append((colour, round(start, 2), round(width, 2)))
            start += width
        return parts


@get("/dashboard/batches", include_in_schema=False, media_type=MediaType.HTML)
async def show_batches(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, door_settings: InjectedSettings
) -> Template:
    """Show a page of the batches of the caller, of all users for an admin, and the form of a new one."""
    return await _list_page(request, services, caller, "batches.html", door_settings=door_settings)


@get("/dashboard/batches/live", include_in_schema=False, media_type=MediaType.HTML)
async def show_list(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Return the list alone, for a page that shows it."""
    return await _list_page(request, services, caller, "batches_live.html")


@post("/dashboard/batches", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_batch(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, door_settings: InjectedSettings
) -> Template | Response[str]:
    """Store the file of the form while it is received, create a batch of it, and show the batch."""
    scope = scope_of(request)
    check_same_site(scope)
    try:
        await check_open_batches(services, caller)
        upload = Upload(LocalRequest(door_settings, scope, scope[RECEIVE], caller))
        file = await store_upload(services, caller, _checked(upload))
    except SignoffError as error:
        shown = await _list_page(request, services, caller, "batches.html", door_settings=door_settings, error=error)
        return with_status(shown, error)
    batch = Batch(
        id=new_batch_id(services, "batch"),
        user_id=caller.user_id,
        api="openai",
        caller=caller,
        endpoint=upload.fields["endpoint"],
        input_file_id=file.id,
    )
    return redirect(f"{BATCHES.path}/{(await create_batch(services, batch)).id}")


@get("/dashboard/batches/{batch_id:str}", include_in_schema=False, media_type=MediaType.HTML)
async def show_batch(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, batch_id: FromPath[str]
) -> Template:
    """Show one batch."""
    return await _batch_page(request, services, caller, batch_id, "batch.html")


@get("/dashboard/batches/{batch_id:str}/live", include_in_schema=False, media_type=MediaType.HTML)
async def show_progress(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, batch_id: FromPath[str]
) -> Template:
    """Return the parts of a batch that change, for a page that shows it."""
    return await _batch_page(request, services, caller, batch_id, "batch_live.html")


@post("/dashboard/batches/{batch_id:str}/cancel", include_in_schema=False, status_code=303)
async def post_cancel(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, batch_id: FromPath[str]
) -> Response[str]:
    """Cancel the batch, unless it has ended meanwhile, and show it."""
    check_same_site(scope_of(request))
    with contextlib.suppress(Conflict):  # the page says how it has ended
        await cancel_batch(services, caller, batch_id)
    return redirect(f"{BATCHES.path}/{batch_id}")


def _checked(upload: Upload) -> Any:
    """Return the function that writes the file of the form. It raises BadRequest if the form is not valid."""

    async def fill(writer: BlobWriter) -> UploadFields:
        fields = await upload.fill(writer)
        if not writer.size_bytes:
            raise BadRequest("Choose a file that has a request in JSON on each line; this one is empty.")
        if upload.fields.get("endpoint") not in ENDPOINTS:
            raise BadRequest("The form needs a valid `endpoint`; reload the page and try again.")
        return fields

    return fill


async def _list_page(
    request: AnyRequest,
    services: Services,
    caller: Caller,
    template: str,
    *,
    door_settings: DoorSettings | None = None,
    error: SignoffError | None = None,
) -> Template:
    query = request.query_params
    api: BatchApi = "anthropic" if query.get("api") == "anthropic" else "openai"
    owner = None if caller.role == "admin" else caller.user_id
    filters = BatchFilter(user_id=owner, api=api, after_id=query.get("after") or None, limit=MAX_LISTED)
    batches = await list_batches(services, filters)
    return page(
        request,
        services,
        caller,
        template,
        BATCHES.name,
        rows=[await _row(services, caller, batch) for batch in batches],
        is_live=any(not batch.has_ended for batch in batches),
        next_id=batches[-1].id if batches and batches.may_continue else None,
        after=filters.after_id or "",
        apis=APIS,
        api=api,
        endpoints=ENDPOINTS,
        usual=CHAT,
        max_bytes=None if door_settings is None else door_settings.max_file_bytes,
        example=EXAMPLE,
        error=error and error.message,
    )


async def _row(services: Services, caller: Caller, batch: Batch) -> dict[str, Any]:
    totals = await totals_of(services, batch)
    return {
        "batch": batch,
        "state": LABELS[batch.status],
        "totals": totals,
        "progress": await _progress(services, batch, totals),
        "file": await _file(services, caller, batch.input_file_id),
        "owner": await owner_of(services, batch) if caller.role == "admin" else None,
    }


async def _batch_page(
    request: AnyRequest, services: Services, caller: Caller, batch_id: str, template: str
) -> Template:
    batch = await find_batch(services, caller, batch_id)
    row = await _row(services, caller, batch)
    files = {"output": batch.output_file_id, "errors": batch.error_file_id}
    return page(
        request,
        services,
        caller,
        template,
        BATCHES.name,
        **row,
        files={name: file_id and await _file(services, caller, file_id) for name, file_id in files.items()},
        ended_at=batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at,
    )


async def _progress(services: Services, batch: Batch, totals: BatchTotals) -> Progress:
    waiting = await waiting_lines(services, batch)
    return Progress(total=totals.total, completed=totals.completed, failed=totals.unanswered, held=waiting.held)


async def _file(services: Services, caller: Caller, file_id: str) -> StoredFile | None:
    """Return a file of a batch; None if it was deleted, or has expired."""
    try:
        return await find_file(services, caller, file_id)
    except NotFound:
        return None


router = Router(
    "/",
    route_handlers=[show_batches, show_list, post_batch, show_batch, show_progress, post_cancel],
)
