"""Errors of the pages, as pages: somebody who clicks must not get JSON."""

from typing import Any

from litestar import MediaType, Response
from litestar.response import Template

from signoff.dashboard.shell import SECURITY_HEADERS
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.errors import error_headers, problem
from signoff.doors.http import MOUNT
from signoff.errors import SignoffError, Unauthorized

PAGES = ("/signin/", "/dashboard/")


def error_page(request: AnyRequest, error: SignoffError) -> Response[Any] | None:
    """Return the page for an error at the address of a page; None for programs, and at all other addresses."""
    path = request.url.path
    if not path.startswith(PAGES) or "text/html" not in request.headers.get("accept", ""):
        return None
    if isinstance(error, Unauthorized) and path.startswith("/dashboard/") and request.method == "GET":
        return Response("", status_code=303, headers={"location": "/dashboard/sign-in"}, media_type=MediaType.HTML)
    context = {
        "root": scope_of(request).get(MOUNT, ""),
        "title": problem(error)["title"],
        "message": error.message,
    }
    return Template(
        "error.html",
        context=context,
        status_code=error.status,
        media_type=MediaType.HTML,
        headers=SECURITY_HEADERS | dict(error_headers(error)),
    )
