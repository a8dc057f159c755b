"""Files in the form of OpenAI's API: `/v1/files`."""

import contextlib
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

from signoff.core.access import Caller
from signoff.core.batch import LISTED_PURPOSES, FileFilter, StoredFile, is_file_id
from signoff.core.upload_form import UploadForm
from signoff.doors.http import (
    DoorSettings,
    Receive,
    Scope,
    Send,
    header,
    parse_digits,
    read_body,
    send_json,
)
from signoff.doors.openai.body import BodyStream
from signoff.errors import (
    BadRequest,
    FilesTooLarge,
    InvalidValue,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    UnsupportedEncoding,
)
from signoff.work.batches.files import (
    BlobWriter,
    UploadFields,
    delete_file,
    find_file,
    list_files,
    read_file,
    store_upload,
    supported_value,
)
from signoff.work.services import Services

MAX_PAGE = 10_000
# Maximum size of the parts of a form besides its file.
FORM_BYTES = 128 * 1024


class LocalRequest(NamedTuple):
    """A request to a collection of this server, such as its files."""

    door_settings: DoorSettings
    """Settings of doors."""
    scope: Scope
    """ASGI scope, whose path begins with /v1."""
    receive: Receive
    """ASGI function that returns the body."""
    caller: Caller
    """Caller, who was identified."""

    async def body(self) -> bytes:
        """Return the whole body. Raises TooLarge."""
        return await read_body(self.scope, self.receive, self.door_settings.max_body_bytes)


async def serve_files(services: Services, request: LocalRequest, send: Send) -> None:
    """Serve a request to `/v1/files` or below it."""
    scope, caller = request.scope, request.caller
    segments = scope["path"].rstrip("/").split("/v1/files", 1)[1].split("/")[1:]
    match scope["method"], segments:
        case "POST", []:
            stored = await store_upload(services, caller, Upload(request).fill)
            await send_json(send, file_json(stored))
        case "GET", []:
            await send_json(send, await _page(services, caller, scope))
        case "GET", [file_id]:
            await send_json(send, file_json(await find_file(services, caller, file_id)))
        case "GET", [file_id, "content"]:
            await _send_content(services, send, await find_file(services, caller, file_id))
        case "DELETE", [file_id]:
            await delete_file(services, caller, file_id)
            await send_json(send, {"id": file_id, "object": "file", "deleted": True})
        case method, [] | [_] | [_, "content"]:
            allowed = {0: "GET, HEAD, POST", 1: "DELETE, GET, HEAD", 2: "GET, HEAD"}[len(segments)]
            raise MethodNotAllowed.at(scope["path"], method, allowed)
        case _:
            raise NotFound(f"The path {scope['path']} does not exist.")


def file_json(file: StoredFile) -> dict[str, Any]:
    """Return a file in the form of OpenAI's API."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at // 1_000_000,
        "expires_at": None if file.expires_at is None else file.expires_at // 1_000_000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


class Upload:
    """An upload: a form with a file, which is written while it is received."""

    def __init__(self, request: LocalRequest) -> None:
        scope = request.scope
        self._body = BodyStream(scope, request.receive)
        self._limit = request.door_settings.max_file_bytes
        self._form = UploadForm(header(scope, b"content-type") or "")
        if (header(scope, b"content-encoding") or "identity").strip().lower() != "identity":
            raise UnsupportedEncoding("The form of an upload must not be compressed; leave `Content-Encoding` out.")

    @property
    def fields(self) -> dict[str, str]:
        """Fields of the form that were read so far, beside its file."""
        return self._form.fields

    async def fill(self, writer: BlobWriter) -> UploadFields:
        """Write the file of the form, and return its other fields. Raises BadRequest, TooLarge, FilesTooLarge."""
        body = self._body
        if body.declared_bytes > self._limit + FORM_BYTES:
            await self._refuse()
        async for data in body.pieces():
            try:
                for piece in self._form.feed(data):
                    await writer.write(piece)
            except FilesTooLarge:
                await body.discard()
                raise
            if writer.size_bytes > self._limit or body.size_bytes > self._limit + FORM_BYTES:
                await self._refuse()
        self._form.finish()
        fields = self._form.fields
        return UploadFields(
            filename=self._form.filename,
            purpose=fields.get("purpose"),
            anchor=fields.get("expires_after[anchor]"),
            seconds=fields.get("expires_after[seconds]"),
        )

    async def _refuse(self) -> None:
        """Raise TooLarge, once the client can see the response."""
        await self._body.discard()
        raise TooLarge(f"The file must not be larger than {self._limit} bytes (setting `max_file_bytes`); split it.")


async def _page(services: Services, caller: Caller, scope: Scope) -> dict[str, Any]:
    query = query_of(scope)
    purpose, order = query.get("purpose"), supported_value("order", query.get("order", "desc"), ("asc", "desc"))
    if purpose is not None:
        purpose = supported_value("purpose", purpose, LISTED_PURPOSES)
    after_id = query.get("after")
    if after_id is not None and not is_file_id(after_id):
        raise InvalidValue("after", f"`after` must be the `id` of a file, such as `file-…` (got {after_id[:100]!r}).")
    filters = FileFilter(
        user_id=caller.user_id,
        purpose=purpose,
        after_id=after_id,
        newest_first=order == "desc",
        limit=limit_of(query, default=MAX_PAGE, maximum=MAX_PAGE),
    )
    page = await list_files(services, filters)
    return page_json([file_json(file) for file in page], has_more=page.may_continue)


def query_of(scope: Scope) -> dict[str, str]:
    """Return the first value of each parameter of the query. Raises BadRequest if it is not UTF-8."""
    try:
        return {name: values[0] for name, values in parse_qs(scope["query_string"].decode(), errors="strict").items()}
    except ValueError:
        raise BadRequest("The query must be UTF-8, percent-encoded.") from None


def limit_of(query: dict[str, str], *, default: int, maximum: int) -> int:
    """Return the parameter `limit`. Raises InvalidValue."""
    text = query.get("limit")
    number = default if text is None else parse_digits(text)
    if number is None or not 1 <= number <= maximum:
        raise InvalidValue("limit", f"`limit` must be an integer from 1 to {maximum} (got {(text or '')[:20]!r}).")
    return number


def page_json(items: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page in the form of OpenAI's API."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}


async def _send_content(services: Services, send: Send, file: StoredFile) -> None:
    await send_blob(services, send, file, b"application/octet-stream")


async def send_blob(services: Services, send: Send, file: StoredFile, content_type: bytes) -> None:
    """Send the contents of a file, as an attachment that no browser shows. Raises BlobMissing, Overloaded."""
    pieces = await read_file(services, file)
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(file.size_bytes).encode()),
        (b"content-disposition", f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}".encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    async with contextlib.aclosing(pieces):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
