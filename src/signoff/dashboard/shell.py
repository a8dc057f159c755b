"""The shell of every page: the bar with the pages that a caller may see, the headers, and the formats of values."""

import secrets
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from litestar import Response
from litestar.response import Template

from signoff.core.access import Caller, may_review
from signoff.core.price import NANO, dollars
from signoff.core.times import SECOND_US
from signoff.core.wire import format_time
from signoff.dashboard.bundle import bundle, static_hash
from signoff.dashboard.unseen import has_unseen, visible
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.http import MOUNT, header, scheme_of
from signoff.errors import SignoffError
from signoff.work.services import Services

TEMPLATES = Path(__file__).parent / "templates"
_POLICY = "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class NavigationItem(NamedTuple):
    """Page in the bar."""

    name: str
    """Title of the page."""
    path: str
    """Its address below the mount."""
    is_more: bool = False
    """True if it stands in the menu at the end of the bar."""


REVIEW = NavigationItem("Review", "/dashboard/review")
JOBS = NavigationItem("Jobs", "/dashboard/jobs")
USAGE = NavigationItem("Usage", "/dashboard/usage")
PLAYGROUND = NavigationItem("Playground", "/dashboard/playground")
BATCHES = NavigationItem("Batches", "/dashboard/batches")
PROMPTS = NavigationItem("Prompts", "/dashboard/prompts")
PIPELINES = NavigationItem("Pipelines", "/dashboard/pipelines")
MODELS = NavigationItem("Models", "/dashboard/models")
POLICIES = NavigationItem("Policies", "/dashboard/policies")
PEOPLE = NavigationItem("People", "/dashboard/people")
FUNCTIONS = NavigationItem("Functions", "/dashboard/functions", is_more=True)
CACHE = NavigationItem("Cache", "/dashboard/cache", is_more=True)
LIMITS = NavigationItem("Limits", "/dashboard/limits", is_more=True)
PRICES = NavigationItem("Prices", "/dashboard/prices", is_more=True)
QUEUES = NavigationItem("Review queues", "/dashboard/queues", is_more=True)
QUALITY = NavigationItem("Quality of review", "/dashboard/quality", is_more=True)
AUDIT = NavigationItem("Audit log", "/dashboard/audit", is_more=True)
API = NavigationItem("API", "/dashboard/api", is_more=True)
EVERY_PAGE = (
    *(REVIEW, JOBS, USAGE, PLAYGROUND, BATCHES, PROMPTS, PIPELINES, MODELS, POLICIES, PEOPLE),
    *(FUNCTIONS, CACHE, LIMITS, PRICES, QUEUES, QUALITY, AUDIT, API),
)
_FOR_ALL = (JOBS, BATCHES, USAGE, PLAYGROUND, PROMPTS, PIPELINES)


def pages_of(caller: Caller) -> list[NavigationItem]:
    """Return the pages that `caller` may see, in the order of the bar; the first one is the start page."""
    is_admin = caller.role == "admin"
    review = [REVIEW] if may_review(caller) else []
    more = [FUNCTIONS, CACHE, LIMITS, *([PRICES, QUEUES, QUALITY, AUDIT] if is_admin else []), API]
    return [*review, *_FOR_ALL, *([MODELS, POLICIES] if is_admin else []), PEOPLE, *more]


def redirect(path: str) -> Response[str]:
    """Return a redirect to `path`, which the browser requests by GET, so that a reload sends no form again."""
    return Response("", status_code=303, headers={"location": path})


def root_of(request: AnyRequest) -> str:
    """Return the path at which the server is mounted, without the last slash."""
    return scope_of(request).get(MOUNT, "")


def address_of(request: AnyRequest) -> str:
    """Return the address at which the caller reaches the server, without the last slash."""
    scope = scope_of(request)
    return f"{scheme_of(scope)}://{header(scope, b'host') or 'localhost'}{root_of(request)}"


def page(
    request: AnyRequest, services: Services, caller: Caller | None, template: str, title: str, /, **context: Any
) -> Template:
    """Return a page in the shell; `title` names it in the bar.

    Args:
        request: The request, whose mount all links begin with.
        services: The dependencies; its clock makes times relative.
        caller: The caller, who sees the pages of its role; None for nobody.
        template: The name of the template.
        title: The title of the page.
        context: The variables of the template.
    """
    shared: dict[str, Any] = {
        "caller": caller,
        "pages": [] if caller is None else pages_of(caller),
        "current": title,
        "ago": partial(format_ago, services.clock()),
        "exact": format_time,
        "cost": format_cost,
        "seconds": format_duration,
        "visible": visible,
        "has_unseen": has_unseen,
    }
    return document(request, template, title, **(shared | context))


def document(request: AnyRequest, template: str, title: str, /, **context: Any) -> Template:
    """Return a page in the shell, without values that depend on the caller or the time; see `page`."""
    nonce, root = secrets.token_urlsafe(16), root_of(request)
    shared = {"root": root, "nonce": nonce, "built": partial(built_address, root), "title": title}
    shared["static"] = partial(static_address, root)
    return Template(template, context=shared | context, headers=security_headers(nonce))


def security_headers(nonce: str) -> dict[str, str]:
    """Return the headers of a page. Styles come only from this server, or have `nonce`, as those of the editor."""
    return _SECURITY_HEADERS | {"content-security-policy": f"{_POLICY}; style-src 'self' 'nonce-{nonce}'"}


def built_address(root: str, entry: str) -> str | None:
    """Return the address of a file of the bundle; None if it is not built."""
    name = bundle().get(entry)
    return None if name is None else f"{root}/static/built/{name}"


def static_address(root: str, name: str) -> str:
    """Return the address of a style sheet or script of this package, which has a hash of all their contents."""
    return f"{root}/static/{static_hash()}/{name}"


def with_status(shown: Template, error: SignoffError | None) -> Template:
    """Return the page with the status of an error that it shows, if it shows one."""
    if error is not None:
        shown.status_code = error.status
    return shown


def format_ago(now: int, at: int) -> str:
    """Return how long ago `at` was, in the largest unit that fits, or how long it is until then.

    >>> format_ago(90 * SECOND_US, 0), format_ago(0, 3600 * SECOND_US), format_ago(0, 0)
    ('1 min ago', 'in 1 h', 'now')
    """
    text = format_unit(abs(now - at))
    return "now" if text == "0 s" else f"{text} ago" if at < now else f"in {text}"


def format_unit(microseconds: int) -> str:
    """Return a duration in the largest unit that fits, rounded down.

    >>> format_unit(59 * SECOND_US), format_unit(2 * 86_400 * SECOND_US)
    ('59 s', '2 d')
    """
    seconds = microseconds // SECOND_US
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1, "s"))
    return f"{seconds // size} {unit}"


def format_duration(microseconds: int | None) -> str:
    """Return a duration with three digits; a dash if it is not known.

    >>> format_duration(4_200), format_duration(1_234_000), format_duration(75 * SECOND_US), format_duration(None)
    ('4 ms', '1.23 s', '1 min', '–')
    """
    if microseconds is None:
        return "–"
    if microseconds < SECOND_US:
        return f"{microseconds // 1000} ms"
    return f"{microseconds / SECOND_US:.3g} s" if microseconds < 60 * SECOND_US else format_unit(microseconds)


def format_cost(nanodollars: int | None) -> str:
    """Return a cost in dollars; `unknown` if it is not known, which differs from nothing.

    >>> format_cost(7_720_000), format_cost(0), format_cost(None)
    ('$0.00772', '$0', 'unknown')
    """
    return "unknown" if nanodollars is None else f"${dollars(nanodollars, NANO)}"
