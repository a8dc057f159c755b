"""Sessions: signing in with a password or a one-time link, and signing out."""

from typing import Any

import msgspec
from litestar import MediaType, Response, Router, delete, get, post
from litestar.params import FromPath

from signoff.doors.callers import caller_of, check_navigation, check_same_site, session_cookie, session_of
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import BODY_LIMIT, parse_json
from signoff.work.admin.people import SESSION_SECONDS, sign_in, sign_in_with_link, sign_out

# Of a sign-in, which anybody may send.
MAX_BODY_BYTES = 4096


class SignIn(msgspec.Struct, frozen=True):
    """Body of `POST /api/session`."""

    email: str
    """E-mail address of the user."""
    password: str
    """Password of the user."""


@post("/api/session", status_code=200, summary="Sign in")
async def post_session(request: AnyRequest, services: InjectedServices) -> Response[dict[str, str]]:
    """Sign in with an e-mail address and a password, and set the session's cookie.

    Refuse a page of another site, which could sign its visitors in as somebody else ("login CSRF").
    """
    check_same_site(scope_of(request))
    scope_of(request)[BODY_LIMIT] = MAX_BODY_BYTES
    credentials = parse_json(await request.body(), SignIn, "sign-in")
    token = await sign_in(services, credentials.email, credentials.password)
    return _with_session(request, {"status": "success"}, token, SESSION_SECONDS)


@delete("/api/session", status_code=200, summary="Sign out")
async def delete_session(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[dict[str, str]]:
    """End the session and delete its cookie."""
    await caller_of(services, door_settings, scope_of(request))
    if (token := session_of(scope_of(request))) is not None:
        await sign_out(services, token)
    return _with_session(request, {"status": "success"}, "", 0)


@get("/signin/{code:str}", summary="Sign in with a one-time link", media_type=MediaType.HTML)
async def get_sign_in_link(request: AnyRequest, services: InjectedServices, code: FromPath[str]) -> Response[str]:
    """Sign in with the one-time code of a link, and redirect to the first page."""
    check_navigation(scope_of(request))
    session = await sign_in_with_link(services, code)
    response = _with_session(request, "", session, SESSION_SECONDS)
    return Response("", status_code=303, headers=response.headers | {"location": "/"}, media_type=MediaType.HTML)


def _with_session(request: AnyRequest, body: Any, token: str, seconds: float) -> Response[Any]:
    name, value = session_cookie(scope_of(request), token, seconds)
    headers = {name.decode(): value.decode(), "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response(body, headers=headers)


router = Router("/", route_handlers=[post_session, delete_session, get_sign_in_link], tags=["session"])
