"""Identification of callers: by bearer token, by session cookie, or as anonymous."""

import contextlib
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from signoff.core.access import Caller
from signoff.doors.http import DoorSettings, Header, Scope, check_address, header, scheme_of
from signoff.errors import Forbidden, Unauthorized
from signoff.work.admin.people import identify
from signoff.work.services import Services

SESSION_COOKIE = "signoff_session"
SECURE_SESSION_COOKIE = "__Host-signoff_session"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


async def caller_of(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool = True) -> Caller:
    """Identify the caller: by the bearer token, else by the session cookie if `sessions`, else as anonymous.

    Raises:
        Unauthorized: There is no valid token or session, and `anonymous_role` is None.
        Forbidden: The request has a session cookie but comes from another site.
        BadRequest: The path or the query has a NUL character.
    """
    caller = await _identify(services, door_settings, scope, sessions=sessions)
    check_address(scope)  # not before, as a caller without a token gets 401 whatever the parameters are
    return caller


async def _identify(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool) -> Caller:
    authorization = header(scope, b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized
        return await identify(services, token.strip())
    if sessions and (session := session_of(scope)) is not None:
        _check_same_site(scope)
        return await identify(services, session, "session")
    if door_settings.anonymous_role is not None:
        return Caller(user_id=0, token_id=0, role=door_settings.anonymous_role, email="anonymous")
    raise Unauthorized


def session_of(scope: Scope) -> str | None:
    """Return the session token in the request's cookies."""
    cookies = SimpleCookie()
    with contextlib.suppress(CookieError):
        cookies.load(header(scope, b"cookie") or "")
    cookie = cookies.get(SECURE_SESSION_COOKIE) or cookies.get(SESSION_COOKIE)
    return cookie.value if cookie else None


def session_cookie(scope: Scope, token: str, seconds: float) -> Header:
    """Return the header that sets the session cookie for `seconds`; an empty `token` and 0 seconds delete it."""
    secure = scheme_of(scope) == "https"
    name = SECURE_SESSION_COOKIE if secure else SESSION_COOKIE
    text = f"{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={int(seconds)}" + ("; Secure" if secure else "")
    return (b"set-cookie", text.encode())


def _check_same_site(scope: Scope) -> None:
    """Raise Forbidden if a request that changes something comes from another site.

    Browsers send a session's cookie with forged requests too. This is OWASP's "Fetch Metadata" defence, with the Origin
    header for browsers that do not send fetch metadata.
    """
    if scope["method"] in SAFE_METHODS:
        return
    site = header(scope, b"sec-fetch-site")
    origin = header(scope, b"origin")
    is_same_site = (
        site in {"same-origin", "none"} if site else origin is None or urlsplit(origin).netloc == header(scope, b"host")
    )
    if not is_same_site:
        raise Forbidden("A session cookie must not be used from another site; send a bearer token instead.")


def takes_commands(door_settings: DoorSettings, scope: Scope) -> bool:
    """Return True if an admin may register a command line in this request.

    That is so if only this machine can send it, or if `allow_remote_commands` is set. The local address of the
    connection counts too, because an application that mounts Signoff may listen elsewhere than the settings say.
    """
    if door_settings.remote_commands or not door_settings.on_loopback:
        return door_settings.remote_commands
    try:
        return ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False
