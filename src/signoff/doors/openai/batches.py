"""Batches in the form of OpenAI's API: `/v1/batches`."""

from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import check_idempotency_key
from signoff.core.batch import EXPIRY_ANCHORS, EXPIRY_SECONDS, FILE_SECONDS, Batch, BatchFilter, BatchTotals
from signoff.core.fingerprint import fingerprint
from signoff.doors.http import Scope, Send, header, parse_json, send_json
from signoff.doors.openai.files import LocalRequest, limit_of, page_json, query_of
from signoff.doors.webhooks import DeliverTo, parse_webhook
from signoff.errors import InvalidType, InvalidValue, MethodNotAllowed, MissingParameter, NotFound
from signoff.work.batches.files import supported_value
from signoff.work.batches.manage import (
    ENDPOINTS,
    cancel_batch,
    check_open_batches,
    create_batch,
    find_batch,
    list_batches,
    new_batch_id,
    totals_of,
)
from signoff.work.services import Services

WINDOW = "24h"
MAX_PAGE = 100
MAX_PAIRS, MAX_NAME_LENGTH, MAX_TEXT_LENGTH = 16, 64, 512
_TYPES = {dict: "an object", list: "an array", int: "an integer", float: "a decimal", bool: "a boolean"}


class ExpiresAfter(msgspec.Struct, frozen=True):
    """Lifetime of output files."""

    anchor: str = ""
    """Time that the lifetime begins at; only `created_at`."""
    seconds: int = 0
    """Lifetime in seconds."""


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/batches`."""

    input_file_id: str | None = None
    """File with the requests."""
    endpoint: str | None = None
    """Path of all requests."""
    completion_window: str | None = None
    """Time within which they are answered; only `24h`."""
    metadata: dict[str, Any] | None = None
    """Names and values that the caller chooses; returned with the batch."""
    output_expires_after: ExpiresAfter | None = None
    """Lifetime of the output files; 30 days without it."""
    deliver: DeliverTo | None = None
    """Webhook for the end of the batch, as in `POST /api/jobs`; not a part of OpenAI's API."""


async def serve_batches(services: Services, request: LocalRequest, send: Send) -> None:
    """Serve a request to `/v1/batches` or below it."""
    scope, caller = request.scope, request.caller
    segments = scope["path"].rstrip("/").split("/v1/batches", 1)[1].split("/")[1:]
    match scope["method"], segments:
        case "POST", []:
            batch = await _create(services, scope, caller, await request.body())
            await send_json(send, await _batch_json(services, batch))
        case "GET", []:
            await send_json(send, await _page(services, caller, scope))
        case "GET", [batch_id]:
            await send_json(send, await _batch_json(services, await _find(services, caller, batch_id)))
        case "POST", [batch_id, "cancel"]:
            await _find(services, caller, batch_id)
            await send_json(send, await _batch_json(services, await cancel_batch(services, caller, batch_id)))
        case method, [] | [_] | [_, "cancel"]:
            allowed = {0: "GET, HEAD, POST", 1: "GET, HEAD", 2: "POST"}[len(segments)]
            raise MethodNotAllowed.at(scope["path"], method, allowed)
        case _:
            raise NotFound(f"The path {scope['path']} does not exist.")


async def _create(services: Services, scope: Scope, caller: Caller, body: bytes) -> Batch:
    new = parse_json(body, NewBatch, "batch")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if getattr(new, name) is None:
            raise MissingParameter(name)
    endpoint = supported_value("endpoint", new.endpoint or "", ENDPOINTS)
    supported_value("completion_window", new.completion_window or "", (WINDOW,))
    key = header(scope, b"idempotency-key")
    check_idempotency_key(key)
    await check_open_batches(services, caller, key)
    batch = Batch(
        id=new_batch_id(services, "batch"),
        user_id=caller.user_id,
        api="openai",
        caller=caller,
        endpoint=endpoint,
        input_file_id=new.input_file_id or "",
        metadata=None if new.metadata is None else _checked_metadata(new.metadata),
        output_seconds=_output_seconds(new.output_expires_after),
        idempotency_key=key,
        fingerprint=fingerprint(msgspec.json.encode(new, order="sorted")),
    )
    return await create_batch(services, batch, parse_webhook(new.deliver))


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, str]:
    """Return metadata of at most 16 pairs of short texts. Raises InvalidType, InvalidValue."""
    if len(metadata) > MAX_PAIRS:
        raise InvalidValue("metadata", f"`metadata` must have at most {MAX_PAIRS} pairs (got {len(metadata)}).")
    for name, value in metadata.items():
        if not isinstance(value, str):
            kind = _TYPES.get(type(value), "null")  # pyright: ignore[reportUnknownArgumentType]
            message = f"Invalid type for 'metadata.{name[:64]}': expected a string, but got {kind} instead."
            raise InvalidType(f"metadata.{name[:64]}", message)
        if len(name) > MAX_NAME_LENGTH or len(value) > MAX_TEXT_LENGTH or "\0" in name + value:
            limits = f"names of at most {MAX_NAME_LENGTH} and values of at most {MAX_TEXT_LENGTH} characters"
            raise InvalidValue(f"metadata.{name[:64]}", f"`metadata` must have {limits}, without NUL characters.")
    return metadata


def _output_seconds(expires_after: ExpiresAfter | None) -> int:
    """Return the lifetime of the output files. Raises InvalidValue."""
    if expires_after is None:
        return FILE_SECONDS
    supported_value("output_expires_after.anchor", expires_after.anchor, EXPIRY_ANCHORS)
    if expires_after.seconds not in EXPIRY_SECONDS:
        limits = f"{EXPIRY_SECONDS.start} to {EXPIRY_SECONDS.stop - 1}"
        message = f"`output_expires_after.seconds` must be an integer from {limits} (got {expires_after.seconds})."
        raise InvalidValue("output_expires_after.seconds", message)
    return expires_after.seconds


async def _find(services: Services, caller: Caller, batch_id: str) -> Batch:
    """Return a batch that was made with this API. Raises NotFound."""
    batch = await find_batch(services, caller, batch_id)
    if batch.api != "openai":
        raise NotFound(f"No batch found with id '{batch_id[:100]}'.")
    return batch


async def _page(services: Services, caller: Caller, scope: Scope) -> dict[str, Any]:
    query = query_of(scope)
    limit = limit_of(query, default=20, maximum=MAX_PAGE)
    filters = BatchFilter(user_id=caller.user_id, api="openai", after_id=query.get("after"), limit=limit)
    page = await list_batches(services, filters)
    return page_json([await _batch_json(services, batch) for batch in page], has_more=page.may_continue)


async def _batch_json(services: Services, batch: Batch) -> dict[str, Any]:
    """Return a batch in the form of OpenAI's API."""
    totals = await totals_of(services, batch)
    times = ("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at")
    errors = None
    if batch.errors:
        errors = {"object": "list", "data": [msgspec.structs.asdict(error) for error in batch.errors]}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        **{name: _seconds(getattr(batch, name)) for name in (*times, "cancelling_at", "cancelled_at")},
        "request_counts": {"total": totals.total, "completed": totals.completed, "failed": totals.unanswered},
        "usage": _usage(totals) if batch.totals is not None else None,
        "metadata": batch.metadata,
    }


def _seconds(microseconds: int | None) -> int | None:
    return None if microseconds is None else microseconds // 1_000_000


def _usage(totals: BatchTotals) -> dict[str, Any]:
    return {
        "input_tokens": totals.prompt_tokens,
        "input_tokens_details": {"cached_tokens": totals.cached_tokens},
        "output_tokens": totals.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
    }
