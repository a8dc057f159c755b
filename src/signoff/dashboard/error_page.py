"""Errors of the pages, as pages, so that a browser shows no JSON."""

from typing import Any
from urllib.parse import urlencode

from litestar import MediaType, Response

from signoff.dashboard.shell import EVERY_PAGE, NavigationItem, document
from signoff.doors.dependencies import AnyRequest
from signoff.doors.errors import error_headers, problem
from signoff.errors import SignoffError, Unauthorized

PAGES = ("/signin/", "/dashboard/")
# Section of an address that is not below its section: the form of the desk.
_SECTIONS = {"decide": "review"}


def error_page(request: AnyRequest, error: SignoffError) -> Response[Any] | None:
    """Return the page for an error at the address of a page; None for programs, and at all other addresses."""
    path = request.url.path
    if not path.startswith(PAGES) or "text/html" not in request.headers.get("accept", ""):
        return None
    if isinstance(error, Unauthorized) and path.startswith("/dashboard/") and request.method == "GET":
        next_path = f"{path}?{request.url.query}".removesuffix("?")
        address = f"/dashboard/sign-in?{urlencode({'next': next_path})}"
        return Response("", status_code=303, headers={"location": address}, media_type=MediaType.HTML)
    back = _section(path)
    response = document(request, "error.html", problem(error)["title"], message=error.message, back=back)
    response.status_code, response.media_type = error.status, MediaType.HTML
    response.headers |= dict(error_headers(error))
    return response


def _section(path: str) -> NavigationItem | None:
    """Return the page of the bar to which a path belongs; None for none."""
    name = path.removeprefix("/dashboard/").partition("/")[0]
    return next((page for page in EVERY_PAGE if page.path == f"/dashboard/{_SECTIONS.get(name, name)}"), None)
