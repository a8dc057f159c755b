"""The page of people: users with their roles, and tokens. Admins see all, others their own."""

import base64
from typing import Any, get_args

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import Caller, Role
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery
from signoff.dashboard.limits import limit_words
from signoff.dashboard.shell import PEOPLE, address_of, page, redirect, root_of
from signoff.dashboard.upstream_keys import keys_of
from signoff.dashboard.user import HANDLERS
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_choice, parse_digits, parse_fields, parse_form, scheme_of
from signoff.doors.people import check_token
from signoff.errors import BadRequest
from signoff.work.admin.issue import TokenRequest, issue_token
from signoff.work.admin.limits import list_limits
from signoff.work.admin.people import (
    UserChange,
    change_user,
    invite_user,
    list_tokens,
    list_users,
    renew_link,
    revoke_token,
)
from signoff.work.admin.usage import usage_report
from signoff.work.services import Services

MAX_LISTED = 50
SPEND_DAYS = 31
MAX_SPENDERS = 1000
# Cookie of a new secret, on its way from the form that made it to the page that shows it.
ONCE, ONCE_SECONDS = "signoff_once", 60
ROLES = get_args(Role)


@get("/dashboard/people", include_in_schema=False, media_type=MediaType.HTML)
async def show_people(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    after_user: FromQuery[str] = "",
    after_token: FromQuery[str] = "",
    after_key: FromQuery[str] = "",
) -> Template:
    """Show a page of the users, one of the tokens and one of the upstream keys; and a new secret, once."""
    once = _secret_of(request)
    cursors = {"after_user": after_user, "after_token": after_token, "after_key": after_key}
    shown = await _people(request, services, check_token(caller), once=once, **cursors)
    if once is not None:
        shown.headers["set-cookie"] = _cookie(request, "", 0)
    return shown


@post("/dashboard/people/tokens", include_in_schema=False, status_code=303)
async def post_token(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Create a token, and redirect to the page, which shows it once."""
    form = await _form(request)
    fields = {
        "name": form.get("name", "").strip(),
        "email": form.get("email", "").strip() or None,
        "role": _role(form["role"]) if form.get("role") else None,
        "days": _days(form.get("days", "").strip()),
        "key_id": _cursor(form.get("key", "").strip()) or None,
    }
    new_token = await issue_token(services, check_token(caller), parse_fields(fields, TokenRequest, "token"))
    return _to_secret(request, "New token", new_token.token)


@post("/dashboard/people/tokens/{token_id:int}/revoke", include_in_schema=False, status_code=303)
async def post_revoke(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, token_id: FromPath[int]
) -> Response[str]:
    """Revoke the token; all processes refuse it within a second."""
    check_same_site(scope_of(request))
    await revoke_token(services, check_token(caller), "api", token_id)
    return _to_people()


@post("/dashboard/people/users", include_in_schema=False, status_code=303)
async def post_user(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Create a user, and redirect to the page, which shows their sign-in link once."""
    form = await _form(request)
    path = await invite_user(services, check_token(caller), form.get("email", "").strip(), _role(form.get("role", "")))
    return _to_secret(request, "Sign-in link, for one day", address_of(request) + path)


@post("/dashboard/people/users/{user_id:int}", include_in_schema=False, status_code=303)
async def post_change(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, user_id: FromPath[int]
) -> Response[str]:
    """Change the role of a user, or disable or enable them."""
    form = await _form(request)
    role = _role(form["role"]) if form.get("role") else None
    active = {"disable": False, "enable": True}.get(form.get("action", ""))
    change = parse_fields({"role": role, "active": active}, UserChange, "change of a user")
    await change_user(services, check_token(caller), user_id, change)
    return _to_people()


@post("/dashboard/people/users/{user_id:int}/link", include_in_schema=False, status_code=303)
async def post_link(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, user_id: FromPath[int]
) -> Response[str]:
    """Make a new sign-in link for a user, and redirect to the page, which shows it once."""
    check_same_site(scope_of(request))
    path = await renew_link(services, check_token(caller), user_id)
    return _to_secret(request, "Sign-in link, for one day", address_of(request) + path)


async def _people(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    *,
    after_user: str = "",
    after_token: str = "",
    after_key: str = "",
    once: tuple[str, str] | None = None,
) -> Template:
    """Return the page; `once` is the title and the text of a secret that is shown now and never again."""
    users = await list_users(services, caller, after_id=_cursor(after_user), limit=MAX_LISTED)
    tokens = await list_tokens(services, caller, "api", after_id=_cursor(after_token), limit=MAX_LISTED)
    query = UsageQuery(by=("token",), since=services.clock() - SPEND_DAYS * DAY_US, by_cost=True, limit=MAX_SPENDERS)
    rows, _ = await usage_report(services, caller, query)
    spent = {row.dimensions["token"]: row.totals for row in rows}
    limits = {each.limit.id: each.limit for each in await list_limits(services, caller) if each.limit.scope == "token"}
    context: dict[str, Any] = {
        "users": users,
        "tokens": [
            {
                "token": token,
                "email": user.email,
                "spent": spent.get(token.id),
                "limit": limit_words(limits[token.id]) if token.id in limits else "",
            }
            for token, user in tokens
        ],
        "spend_days": SPEND_DAYS,
        "next_user": users[-1].id if len(users) == MAX_LISTED else None,
        "next_token": tokens[-1][0].id if len(tokens) == MAX_LISTED else None,
        "roles": ROLES,
        "once": once,
        "now": services.clock(),
    } | await keys_of(services, caller, _cursor(after_key))
    return page(request, services, caller, "people.html", PEOPLE.name, **context)


async def _form(request: AnyRequest) -> dict[str, str]:
    check_same_site(scope_of(request))
    return parse_form(await request.body(), dict[str, str], "change of people")


def _to_secret(request: AnyRequest, title: str, secret: str) -> Response[str]:
    """Redirect to the page with a secret in a cookie, which the page shows and deletes, so a reload makes none."""
    value = base64.urlsafe_b64encode(msgspec.json.encode((title, secret))).decode()
    response = _to_people()
    response.headers["set-cookie"] = _cookie(request, value, ONCE_SECONDS)
    return response


def _secret_of(request: AnyRequest) -> tuple[str, str] | None:
    """Return the title and the text of the secret in the cookie of a request."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(request.cookies.get(ONCE, "")), type=tuple[str, str])
    except ValueError:
        return None


def _cookie(request: AnyRequest, value: str, seconds: int) -> str:
    secure = "; Secure" if scheme_of(scope_of(request)) == "https" else ""
    return f"{ONCE}={value}; Path={root_of(request)}{PEOPLE.path}; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}"


def _role(text: str) -> Role:
    return parse_choice("role", text, ROLES)


def _days(text: str) -> float | None:
    if not text:
        return None
    if (days := parse_digits(text)) is None:
        raise BadRequest(f"`days` must be a whole number of days, or empty for no end (got {text!r}).")
    return float(days)


def _cursor(text: str) -> int:
    number = parse_digits(text)
    return number if number is not None and number < INTS else 0


def _to_people() -> Response[str]:
    return redirect(PEOPLE.path)


router = Router(
    "/", route_handlers=[show_people, post_token, post_revoke, post_user, post_change, post_link, *HANDLERS]
)
