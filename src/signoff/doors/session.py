"""Sessions: signing in with a password or a one-time link, and signing out."""

from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, delete, get, post
from litestar.params import FromPath

from signoff.core.sign_in import checked_next
from signoff.doors.callers import caller_of, check_navigation, check_same_site, session_cookie, session_of
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.doors.errors import error_headers
from signoff.doors.http import BODY_LIMIT, client_of, header, parse_form, parse_json
from signoff.errors import BadRequest, LimitReached, PasswordsOff, SignoffError, Unauthorized
from signoff.work.admin.people import MAX_EMAIL_LENGTH, MAX_PASSWORD_LENGTH
from signoff.work.admin.sign_in import SESSION_SECONDS, sign_in, sign_in_with_link, sign_out

FORM = "application/x-www-form-urlencoded"
# Maximum size of a sign-in, whose sender is not known.
MAX_BODY_BYTES = 4096


class SignIn(msgspec.Struct, frozen=True):
    """Body of `POST /api/session`."""

    email: Annotated[str, msgspec.Meta(max_length=MAX_EMAIL_LENGTH)]
    """E-mail address of the user."""
    password: Annotated[str, msgspec.Meta(max_length=MAX_PASSWORD_LENGTH)]
    """Password of the user."""


class SignInForm(SignIn, frozen=True):
    """Form of the sign-in page."""

    next: str = ""
    """Address of the page to which the sign-in leads; one of another server is ignored."""


@post("/api/session", status_code=200, summary="Sign in")
async def post_session(request: AnyRequest, services: InjectedServices) -> Response[Any]:
    """Sign in with an e-mail address and a password, and set the session's cookie.

    The form of the start page gets a redirect to that page, also after an error.
    """
    scope = scope_of(request)
    check_same_site(scope)
    scope[BODY_LIMIT] = MAX_BODY_BYTES
    body = await request.body()
    # `curl -d` sends JSON under the type of forms.
    if not (header(scope, b"content-type") or "").startswith(FORM) or body.lstrip().startswith(b"{"):
        credentials = parse_json(body, SignIn, "sign-in")
        token = await sign_in(services, credentials.email, credentials.password, client_of(scope))
        return _with_session(request, {"status": "success"}, token, SESSION_SECONDS)
    form: SignInForm | None = None
    try:
        form = parse_form(body, SignInForm, "sign-in")
        token = await sign_in(services, form.email, form.password, client_of(scope))
    except (BadRequest, LimitReached, PasswordsOff, Unauthorized) as error:
        return _redirect({"location": _address_of(error, "" if form is None else form.next)})
    headers = _with_session(request, "", token, SESSION_SECONDS).headers
    return _redirect(headers | {"location": checked_next(form.next)})


@delete("/api/session", status_code=200, summary="Sign out")
async def delete_session(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[dict[str, str]]:
    """End the session and delete its cookie."""
    await caller_of(services, door_settings, scope_of(request))
    response, _ = await end_session(request, services)
    return response


async def end_session(request: AnyRequest, services: InjectedServices) -> tuple[Response[dict[str, str]], bool]:
    """End the session of the request's cookie, if it has one.

    Return the response that deletes the cookie, and True if the session began at the OpenID Connect provider.
    """
    token = session_of(scope_of(request))
    began_at_provider = token is not None and await sign_out(services, token)
    return _with_session(request, {"status": "success"}, "", 0), began_at_provider


@get("/signin/{code:str}", summary="Sign in with a one-time link", media_type=MediaType.HTML)
async def get_sign_in_link(request: AnyRequest, services: InjectedServices, code: FromPath[str]) -> Response[str]:
    """Sign in with the one-time code of a link, and redirect to the first page."""
    check_navigation(scope_of(request))
    session = await sign_in_with_link(services, code)
    return _redirect(_with_session(request, "", session, SESSION_SECONDS).headers)


def _redirect(headers: dict[str, Any]) -> Response[str]:
    """Return a redirect, by default to the start page."""
    return Response("", status_code=303, headers={"location": "/"} | headers, media_type=MediaType.HTML)


def _address_of(error: SignoffError, next_path: str) -> str:
    """Return the address of the start page with the code of an error, for which the page has texts of its own."""
    parameters, seconds = {"error": error.code}, error_headers(error).get("retry-after")
    parameters |= {} if seconds is None else {"retry_after": seconds}
    return "/?" + urlencode(parameters | ({"next": next_path} if checked_next(next_path) == next_path else {}))


def _with_session(request: AnyRequest, body: Any, token: str, seconds: float) -> Response[Any]:
    name, value = session_cookie(scope_of(request), token, seconds)
    headers = {name.decode(): value.decode(), "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response(body, headers=headers)


router = Router("/", route_handlers=[post_session, delete_session, get_sign_in_link], tags=["session"])
