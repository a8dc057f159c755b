"""Message batches in the form of Anthropic's API: `/v1/messages/batches`."""

import contextlib
import re
from typing import Any

from signoff.core.access import Caller
from signoff.core.api_paths import MESSAGES
from signoff.core.batch import Batch, BatchFilter
from signoff.core.wire import format_time
from signoff.doors.http import Send, header, scheme_of, send_json
from signoff.doors.openai.body import BodyStream
from signoff.doors.openai.files import LocalRequest, limit_of, query_of, send_blob
from signoff.doors.openai.message_requests import read_requests
from signoff.errors import BadRequest, Conflict, MethodNotAllowed, NotFound, SignoffError
from signoff.work.batches.manage import cancel_batch, delete_batch, find_batch, list_batches, totals_of
from signoff.work.batches.messages import PREFIX, create_message_batch, results_file
from signoff.work.services import Services

MAX_PAGE = 1000
JSON_LINES = b"application/x-jsonl"
# Ids of this server. Anthropic's own have letters of both cases.
LOCAL_ID = re.compile(rf"{PREFIX}_[0-9a-f]{{32}}")


def is_local(segments: list[str]) -> bool:
    """Return True if the segments of a path after `batches` are for a batch of this server, or for all of them."""
    return not segments or LOCAL_ID.fullmatch(segments[0]) is not None


async def serve_message_batches(services: Services, request: LocalRequest, send: Send) -> None:
    """Serve a request to `/v1/messages/batches` or below it."""
    scope, caller = request.scope, request.caller
    segments = scope["path"].rstrip("/").split(f"{MESSAGES}/batches", 1)[1].split("/")[1:]
    match scope["method"], segments:
        case "POST", []:
            batch = await _create(services, request)
            await send_json(send, await _batch_json(services, request, batch))
        case "GET", []:
            await send_json(send, await _page(services, request))
        case "GET", [batch_id]:
            await send_json(send, await _batch_json(services, request, await find_batch(services, caller, batch_id)))
        case "DELETE", [batch_id]:
            await delete_batch(services, caller, batch_id)
            await send_json(send, {"id": batch_id, "type": "message_batch_deleted"})
        case "POST", [batch_id, "cancel"]:
            await send_json(send, await _batch_json(services, request, await _cancel(services, caller, batch_id)))
        case "GET", [batch_id, "results"]:
            batch = await find_batch(services, caller, batch_id)
            await send_blob(services, send, await results_file(services, batch), JSON_LINES)
        case method, [] | [_] | [_, "cancel" | "results"]:
            allowed = {0: "GET, HEAD, POST", 1: "DELETE, GET, HEAD"}.get(len(segments), "GET, HEAD")
            raise MethodNotAllowed.at(scope["path"], method, "POST" if segments[-1:] == ["cancel"] else allowed)
        case _:
            raise NotFound(f"The path {scope['path']} does not exist.")


async def _create(services: Services, request: LocalRequest) -> Batch:
    body, key = BodyStream(request.scope, request.receive), header(request.scope, b"idempotency-key")
    try:
        async with contextlib.aclosing(read_requests(request, body)) as requests:
            return await create_message_batch(services, request.caller, requests, idempotency_key=key)
    except SignoffError:
        with contextlib.suppress(BadRequest):  # the client has left
            await body.discard()
        raise


async def _cancel(services: Services, caller: Caller, batch_id: str) -> Batch:
    """Cancel a batch; one that is cancelled or has ended stays as it is."""
    try:
        return await cancel_batch(services, caller, batch_id)
    except Conflict:
        return await find_batch(services, caller, batch_id)


async def _page(services: Services, request: LocalRequest) -> dict[str, Any]:
    query = query_of(request.scope)
    filters = BatchFilter(
        user_id=request.caller.user_id,
        api="anthropic",
        after_id=query.get("after_id"),
        before_id=query.get("before_id"),
        limit=limit_of(query, default=20, maximum=MAX_PAGE),
    )
    page = await list_batches(services, filters)
    items = [await _batch_json(services, request, batch) for batch in page]
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"data": items, "has_more": page.may_continue, "first_id": first, "last_id": last}


async def _batch_json(services: Services, request: LocalRequest, batch: Batch) -> dict[str, Any]:
    """Return a batch in the form of Anthropic's API."""
    totals = await totals_of(services, batch)
    status = {"cancelling": "canceling"}.get(batch.status, "ended" if batch.has_ended else "in_progress")
    counts = {"processing": batch.total or 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    if batch.totals is not None:
        ends = {"succeeded": totals.completed, "errored": totals.failed, "canceled": totals.cancelled}
        counts = {"processing": 0, **ends, "expired": totals.expired}
    archived_at = batch.output_ends_at
    is_archived = archived_at is not None and archived_at <= services.clock()
    has_results = batch.output_file_id is not None and not is_archived
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": counts,
        "created_at": format_time(batch.created_at),
        "expires_at": format_time(batch.expires_at),
        "ended_at": _time(batch.ended_at),
        "cancel_initiated_at": _time(batch.cancelling_at),
        "archived_at": _time(archived_at) if is_archived else None,
        "results_url": _results_url(request, batch) if has_results else None,
    }


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else format_time(microseconds)


def _results_url(request: LocalRequest, batch: Batch) -> str:
    """Return the address of the results, as the client reaches this server."""
    scope = request.scope
    base = (
        request.door_settings.public_url or f"{scheme_of(scope)}://{header(scope, b'host')}{scope.get('root_path', '')}"
    )
    return f"{base}{MESSAGES}/batches/{batch.id}/results"
