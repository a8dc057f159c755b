"""Errors of the pages, as pages: somebody who clicks must not get JSON."""

from typing import Any

from litestar import MediaType, Response
from litestar.response import Template

from signoff.dashboard.shell import SECURITY_HEADERS
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.errors import error_headers, problem
from signoff.doors.http import MOUNT
from signoff.errors import SignoffError, Unauthorized

SIGN_IN_LINKS, PAGES = "/signin/", ("/signin/", "/dashboard/")
LINK_IS_USED = "This sign-in link was used already, or is too old. An admin makes a new one: signoff user link EMAIL"


def error_page(request: AnyRequest, error: SignoffError) -> Response[Any] | None:
    """Return the page for an error at the address of a page; None for programs, and at all other addresses."""
    path = request.url.path
    if not path.startswith(PAGES) or "text/html" not in request.headers.get("accept", ""):
        return None
    if isinstance(error, Unauthorized) and path.startswith("/dashboard/") and request.method == "GET":
        return Response("", status_code=303, headers={"location": "/dashboard/sign-in"}, media_type=MediaType.HTML)
    is_used_link = path.startswith(SIGN_IN_LINKS) and isinstance(error, Unauthorized)
    context = {
        "root": scope_of(request).get(MOUNT, ""),
        "title": problem(error)["title"],
        "message": LINK_IS_USED if is_used_link else error.message,
    }
    return Template(
        "error.html",
        context=context,
        status_code=error.status,
        media_type=MediaType.HTML,
        headers=SECURITY_HEADERS | dict(error_headers(error)),
    )
