"""The OpenAPI document: that of Litestar, with the errors that each route can return."""

from typing import Any, cast

import msgspec
from litestar.openapi.plugins import JsonRenderPlugin

from signoff.doors import generate, jobs
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.errors import PROBLEM
from signoff.doors.http import MOUNT

_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {"type": _TEXT, "title": _TEXT, "status": _NUMBER, "detail": _TEXT, "code": _TEXT, "job_id": _TEXT},
}
_OF_JOBS = {
    "type": "object",
    "required": ["status", "code", "message"],
    "properties": {"status": {"const": "error"}, "code": _TEXT, "message": _TEXT},
}
_DETAIL = {
    "type": "object",
    "required": ["detail", "code"],
    "properties": {"detail": _TEXT, "code": _TEXT, "job_id": _TEXT},
}


class Document(JsonRenderPlugin):
    """Renderer of the document at `/schema/openapi.json`."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        """Return the document as JSON, with the response of an error for each operation."""
        root = scope_of(request).get(MOUNT, "")
        servers = {"servers": [{"url": root}]} if root else {}
        return msgspec.json.encode(with_errors(openapi_schema) | servers)


def with_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with a response `default` for each operation, in the format of its API."""
    paths = cast("dict[str, dict[str, Any]]", document["paths"])
    return document | {"paths": {path: _with_error(path, item) for path, item in paths.items()}}


def _with_error(path: str, item: dict[str, Any]) -> dict[str, Any]:
    media_type, schema = PROBLEM, _PROBLEM
    for paths, form in ((jobs.PATHS, _OF_JOBS), (generate.PATHS, _DETAIL)):
        if path in paths:
            media_type, schema = "application/json", form
    error = {
        "description": "An error: see the codes in docs/errors.md.",
        "content": {media_type: {"schema": schema}},
    }
    return {
        method: operation
        | {"responses": {"default": error} | _without_own_form(cast("dict[str, Any]", operation["responses"]))}
        if isinstance(operation, dict) and "responses" in operation
        else operation
        for method, operation in item.items()
    }


def _without_own_form(responses: dict[str, Any]) -> dict[str, Any]:
    """Return the responses without that for invalid parameters, as Litestar documents a form which no API here has."""
    return {status: response for status, response in responses.items() if status != "400"}
