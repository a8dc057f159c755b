"""What every HTTP door needs: a bounded body, the caller, and JSON out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from math import ceil
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import structlog
from litestar import Request
from litestar.di import NamedDependency

from signoff.core.access import Caller, Role
from signoff.core.cache import CacheControl, parse_cache_control
from signoff.core.job import Job
from signoff.errors import BadPipeline, BadRequest, Forbidden, LimitReached, SignoffError, TooLarge, Unauthorized
from signoff.work.admin.people import identify
from signoff.work.services import Services

JSON = b"application/json"
READ_AWAY_BYTES = 64 * 1024 * 1024
MAX_WAIT_SECONDS = 3600.0
# What columns of whole numbers hold is less than these.
INTS = 2**31
BIGINTS = 2**63 - 1
SESSION_COOKIE = "signoff_session"
SECURE_SESSION_COOKIE = "__Host-signoff_session"
# Where a request's scope keeps the first header of each name.
HEADERS = "signoff.headers"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
T = TypeVar("T")
Header = tuple[bytes, bytes]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
SendError = Callable[[Send, SignoffError], Awaitable[None]]
log = structlog.get_logger()


class DoorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What doors are told of the settings."""

    max_body_bytes: int
    anonymous_role: Role | None
    enqueue_review: str
    keep_alive_seconds: float
    on_loopback: bool = False
    remote_commands: bool = False
    cors_origins: Collection[str] = ()


# What Litestar hands to a handler, by its name.
InjectedServices = NamedDependency[Services]
InjectedSettings = NamedDependency[DoorSettings]
InjectedCaller = NamedDependency[Caller]


async def in_dialect(door: ASGIApp, scope: Scope, receive: Receive, send: Send, tell: SendError) -> None:
    """One request of a plain ASGI door; what goes wrong, a fault of ours too, is told in that door's dialect."""
    try:
        check_address(scope)
        await door(scope, receive, send)
    except SignoffError as error:
        await tell(send, error)
    except Exception:
        log.exception("a request failed unexpectedly", path=scope["path"])
        await tell(send, SignoffError("The server made a mistake; its log says more."))


def check_address(scope: Scope) -> None:
    """Raises BadRequest for zero bytes, which are in no name and which a database may not take."""
    if b"%00" in scope["query_string"] or "\0" in scope["path"]:
        raise BadRequest("A path and a query have no zero bytes.")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises TooLarge, after reading enough of it away that the client sees the answer; BadRequest
    when the client has left, and nobody sees it.
    """
    pieces, size = list[bytes](), 0
    too_large = (number_in(header(scope, b"content-length")) or 0) > limit
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("The client left before its body was complete.")
        piece = message.get("body", b"")
        size += len(piece)
        too_large = too_large or size > limit
        if not too_large:
            pieces.append(piece)
        if not message.get("more_body") or size > READ_AWAY_BYTES:
            break
    if too_large:
        raise TooLarge(f"The body is larger than {limit} bytes.")
    return b"".join(pieces)


def scope_of(request: Request[Any, Any, Any]) -> Scope:
    """The plain ASGI scope of a Litestar request."""
    return cast("Scope", request.scope)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name`, which is in lower case."""
    first: dict[bytes, bytes] | None = scope.get(HEADERS)
    if first is None:
        first = scope[HEADERS] = dict(reversed([*scope["headers"]]))
    value = first.get(name)
    return None if value is None else value.decode("latin-1")


def text_header(scope: Scope, name: bytes) -> str | None:
    """The same, where it may be in any script: UTF-8, as `call_headers` writes it."""
    value = header(scope, name)
    return None if value is None else value.encode("latin-1").decode(errors="replace")


def number_in(text: str | None) -> int | None:
    """The whole number that `text` is in plain digits, or BIGINTS if that is less; None for anything else."""
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) < len(str(BIGINTS)) else BIGINTS


def wait_seconds_of(scope: Scope) -> float | None:
    """Seconds of `Prefer: wait=N`, an hour at most, and none for `Prefer: respond-async` (RFC 7240)."""
    for preference in (header(scope, b"prefer") or "").split(","):
        name, _, value = preference.strip().lower().partition("=")
        if name == "wait" and (seconds := number_in(value)) is not None:
            return min(float(seconds), MAX_WAIT_SECONDS)
        if name == "respond-async":
            return 0.0
    return None


def cache_control_of(scope: Scope) -> CacheControl:
    """What the caller's `Cache-Control` says."""
    if header(scope, b"cache-control") is None:
        return _ANY
    return parse_cache_control(value.decode("latin-1") for name, value in scope["headers"] if name == b"cache-control")


_ANY = CacheControl()


def cache_header(job: Job) -> Header:
    """Whether the answer came from the cache, may come from it the next time, or never does."""
    return (b"x-signoff-cache", (job.cache or "bypass").encode())


async def caller_of(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool = True) -> Caller:
    """Who is asking: a bearer token, else a session's cookie if `sessions`, else nobody, where that is allowed.

    Raises Unauthorized; Forbidden for a forged request.
    """
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
    """The session token of the request's cookies."""
    cookies = SimpleCookie()
    with contextlib.suppress(CookieError):
        cookies.load(header(scope, b"cookie") or "")
    found = cookies.get(SECURE_SESSION_COOKIE) or cookies.get(SESSION_COOKIE)
    return found.value if found else None


def session_cookie(scope: Scope, token: str, seconds: float) -> Header:
    """The header that sets the session; an empty `token` with 0 seconds ends it."""
    secure = scope["scheme"] == "https"
    name = SECURE_SESSION_COOKIE if secure else SESSION_COOKIE
    text = f"{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={int(seconds)}" + ("; Secure" if secure else "")
    return (b"set-cookie", text.encode())


def _check_same_site(scope: Scope) -> None:
    """A session's cookie goes with forged requests too: one that changes something must come from our own pages.

    OWASP's "Fetch Metadata" defence, with the Origin header for browsers that have none.
    """
    if scope["method"] in SAFE_METHODS:
        return
    site = header(scope, b"sec-fetch-site")
    origin = header(scope, b"origin")
    same = (
        site in {"same-origin", "none"} if site else origin is None or urlsplit(origin).netloc == header(scope, b"host")
    )
    if not same:
        raise Forbidden("This request came from another site.")


def takes_commands(door_settings: DoorSettings, scope: Scope) -> bool:
    """Whether an admin may name a program in this request: only this machine can send it, or the operator says so.

    The address that it came to is looked at too: another server than ours may listen elsewhere than the settings say.
    """
    if door_settings.remote_commands or not door_settings.on_loopback:
        return door_settings.remote_commands
    try:
        return ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False


@contextlib.asynccontextmanager
async def leaving(services: Services, receive: Receive) -> AsyncGenerator[None]:
    """Cancels the block when the client disconnects, and swallows that cancellation after it."""
    task, gone = asyncio.current_task(), asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if task is not None and not over:
            task.cancel()

    over = False
    watcher = services.runtime.background.spawn(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone.is_set() or task is None:
            raise
        task.uncancel()
    finally:
        over = True
        watcher.cancel()


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, headers: Iterable[Header] = ()) -> None:
    """One whole response."""
    length = str(len(body)).encode()
    start = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: Send, told: Any, headers: Iterable[Header] = (), *, status: int = 200) -> None:
    """One whole response that says `told`."""
    await send_bytes(send, status, msgspec.json.encode(told), JSON, headers)


def decoded(body: bytes, kind: type[T], otherwise: str, wrong: type[SignoffError] = BadRequest) -> T:
    """The JSON of a request. Raises `wrong`, which says `otherwise` and the reason, for what is no such thing."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise wrong(f"{otherwise}: {error}") from None


def not_allowed(method: str) -> SignoffError:
    """The refusal of a method."""
    error = BadRequest(f"Not a method: {method}")
    error.status, error.code = 405, "method_not_allowed"
    return error


def problem(error: SignoffError) -> dict[str, Any]:
    """The native dialect: problem details (RFC 9457)."""
    details: dict[str, Any] = {
        "type": "about:blank",
        "title": _phrase(error.status),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, BadPipeline):
        details |= {"position": error.at, "line": error.line, "column": error.column}
    return details if error.job_id is None else details | {"job_id": error.job_id}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def error_headers(error: SignoffError) -> Mapping[str, str]:
    """The headers that go with an error, in any dialect."""
    headers: dict[str, str] = {}
    if error.status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    if error.job_id is not None:
        headers["location"] = f"/api/jobs/{error.job_id}"
    # Clients would ask again by themselves, which would only repeat what was done.
    if not error.retryable and (error.status in {408, 409, 429} or error.status >= 500):
        headers["x-should-retry"] = "false"
    if isinstance(error, LimitReached):
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds)))
    elif error.status in {429, 503} and error.retryable:
        headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds or 0)))
    return headers
