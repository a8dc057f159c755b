"""Identification of callers: by bearer token, by session cookie, or as anonymous."""

import contextlib
import re
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from signoff.core.access import Caller, anonymous_caller
from signoff.core.audit import Actor
from signoff.doors.http import (
    DoorSettings,
    Header,
    Scope,
    check_nul_characters,
    client_of,
    header,
    headers_of,
    scheme_of,
)
from signoff.errors import BadRequest, Forbidden, MisdirectedRequest, Unauthorized
from signoff.infra.actor import act_as
from signoff.infra.logging import USER_ID
from signoff.work.admin.people import identify
from signoff.work.services import Services

SESSION_COOKIE = "signoff_session"
SECURE_SESSION_COOKIE = "__Host-signoff_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LABEL_SELECTOR = b"x-label-selector"
KEY_HEADERS = (b"x-api-key", b"api-key")
# Headers that must not occur twice: a proxy, or another parser, could read another one than the first.
SINGLE_HEADERS = (b"host", b"authorization", *KEY_HEADERS, b"x-signoff-model", b"idempotency-key", b"content-type")
LOCALHOST = "localhost"
DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_HOST_LENGTH = 255
# Headers of proxies. Common ones of other proxies are forms of these names, such as `fly-client-ip`.
FORWARDING_HEADER = re.compile(
    rb"via|forwarded|forwarded-for|x-forwarded|x-(original-)?forwarded-.+|x-(real|originating|remote)-(ip|addr)|cdn-loop"
    rb"|(.+-)?(client|connecting|user)-?(ip|ipv6)"
)


async def caller_of(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool = True) -> Caller:
    """Identify the caller: by the token, else by the session cookie if `sessions`, else as anonymous.

    Without `sessions`, a request of any method may change something. The caller becomes the actor of all changes that
    the request makes.

    Raises:
        Unauthorized: There is no valid token or session, and `anonymous_role` is None.
        Forbidden: The request has no token, and a page of another site sends it.
        MisdirectedRequest: The request has no token, and its `Host` is not one for anonymous callers.
        BadRequest: The path or the query has a NUL character, a header of SINGLE_HEADERS occurs twice, or the request
            has the header `X-Label-Selector`.
    """
    if len(headers_of(scope)) < len(scope["headers"]):
        _check_single(scope)
    caller = await _identify(services, door_settings, scope, sessions=sessions)
    USER_ID.set(caller.user_id)
    act_as(Actor(name=caller.actor, client=client_of(scope) or None))
    if LABEL_SELECTOR in headers_of(scope):
        raise BadRequest("`X-Label-Selector` is not supported, as models have no labels here; leave the header out.")
    check_nul_characters(scope)  # not before, as a caller without a token gets 401 whatever the parameters are
    return caller


def _check_single(scope: Scope) -> None:
    names = [name for name, _ in scope["headers"]]
    for name in SINGLE_HEADERS:
        if names.count(name) > 1:
            raise BadRequest(
                f"The header `{name.decode()}` occurs twice, and parsers differ in which one they read; send it once."
            )


async def _identify(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool) -> Caller:
    safe_methods: Collection[str] = SAFE_METHODS if sessions else ()
    if (token := _token_of(scope)) is not None:
        return await identify(services, token)
    if sessions and (session := session_of(scope)) is not None:
        if scope["method"] not in safe_methods:
            check_same_site(scope)
        return await identify(services, session, "session")
    if door_settings.anonymous_role is not None:
        _check_anonymous(door_settings, scope, safe_methods)
        return anonymous_caller(door_settings.anonymous_role)
    raise Unauthorized


def _token_of(scope: Scope) -> str | None:
    """Return the token in `Authorization`, or in the headers where clients of Anthropic and Azure send it.

    Raises Unauthorized if `Authorization` has no bearer token, or if two of the headers differ.
    """
    token, authorization, headers = None, header(scope, b"authorization"), headers_of(scope)
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized
        token = token.strip()
    for name in KEY_HEADERS:
        if name not in headers or not (key := headers[name].decode("latin-1").strip()):
            continue
        if token is not None and key != token:
            raise Unauthorized("`Authorization`, `x-api-key` and `api-key` must have the same token; send one of them.")
        token = key
    return token


def session_of(scope: Scope) -> str | None:
    """Return the session token in the request's cookies.

    Over https, only the cookie that no other host and no page over http can set counts.
    """
    cookies = SimpleCookie()
    with contextlib.suppress(CookieError):
        cookies.load(header(scope, b"cookie") or "")
    cookie = cookies.get(_session_cookie_name(scope))
    return cookie.value if cookie else None


def session_cookie(scope: Scope, token: str, seconds: float) -> Header:
    """Return the header that sets the session cookie for `seconds`; an empty `token` and 0 seconds delete it."""
    name = _session_cookie_name(scope)
    text = f"{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={int(seconds)}"
    return (b"set-cookie", (text + ("; Secure" if name == SECURE_SESSION_COOKIE else "")).encode())


def _session_cookie_name(scope: Scope) -> str:
    return SECURE_SESSION_COOKIE if scheme_of(scope) == "https" else SESSION_COOKIE


def check_same_site(scope: Scope) -> None:
    """Raise Forbidden if a page of another site sends the request.

    Browsers send the cookie of a session, and reach servers of their machine and network, for any page. This is OWASP's
    "Fetch Metadata" defence, with the `Origin` header for browsers that do not send fetch metadata.
    """
    if not _is_same_site(scope):
        raise Forbidden("A page of another site must not send this request; send a bearer token instead.")


def check_navigation(scope: Scope) -> None:
    """Raise Forbidden if a page of another site loads the path as a part of itself, and not as a link."""
    if not _is_same_site(scope) and header(scope, b"sec-fetch-dest") != "document":
        raise Forbidden("A page of another site must not load this path; open it in the address bar.")


def _is_same_site(scope: Scope) -> bool:
    site, origin = header(scope, b"sec-fetch-site"), header(scope, b"origin")
    if site:
        return site in {"same-origin", "none"}
    return origin is None or _has_origin(scope, origin)


def _has_origin(scope: Scope, origin: str) -> bool:
    """Return True if this server is at `origin`: at the scheme, the host and the port."""
    try:
        theirs, own = urlsplit(origin), urlsplit(f"{scheme_of(scope)}://{header(scope, b'host')}")
        ports = [url.port or DEFAULT_PORTS.get(url.scheme) for url in (theirs, own)]
    except ValueError:
        return False
    return (theirs.scheme, theirs.hostname, ports[0]) == (own.scheme, own.hostname, ports[1])


def _check_anonymous(door_settings: DoorSettings, scope: Scope, safe_methods: Collection[str]) -> None:
    """Raise MisdirectedRequest or Forbidden if a page of another site may have sent a request without a token.

    A page can give its own host name the address of this server ("DNS rebinding"), and then reads what is answered; so
    the name must be one that no page can have.
    """
    name = _host_name(scope)
    if not (_is_address(name) or name == LOCALHOST or name in door_settings.allowed_hosts):
        raise MisdirectedRequest(
            f"`Host` must be an address, localhost or one of `allowed_hosts` in a request without a token "
            f"(got {name[:MAX_HOST_LENGTH]!r}); send a token, or add the name to that setting."
        )
    origin = header(scope, b"origin")  # of a page that may read the response, if `cors_origins` has a `*`
    if (scope["method"] not in safe_methods or origin is not None) and origin not in door_settings.cors_origins:
        check_same_site(scope)


def takes_commands(door_settings: DoorSettings, scope: Scope) -> bool:
    """Return True if an admin may register a command line in this request.

    That is so if only this machine can send it, or if `allow_remote_commands` is set. The local address of the
    connection counts too, because an application that mounts Signoff may listen elsewhere than the settings say, and
    what a proxy on this machine passes on comes from elsewhere.
    """
    if door_settings.remote_commands or not door_settings.on_loopback:
        return door_settings.remote_commands
    if any(FORWARDING_HEADER.fullmatch(name) for name, _ in scope["headers"]):
        return False
    name = _host_name(scope)
    return (name == LOCALHOST or _is_loopback(name)) and _is_loopback((scope.get("server") or ("",))[0])


def _host_name(scope: Scope) -> str:
    """Return the name or the address in the header `Host`, in lower case; an empty text if there is none."""
    try:
        return (urlsplit(f"//{header(scope, b'host') or ''}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def _is_loopback(text: str) -> bool:
    return _is_address(text) and ip_address(text).is_loopback
