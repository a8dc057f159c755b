"""Parts that all HTTP doors share: reading requests, identifying callers, and sending responses and errors."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
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
from signoff.errors import (
    BadBody,
    BadPipeline,
    BadRequest,
    Forbidden,
    LimitReached,
    SignoffError,
    TooLarge,
    Unauthorized,
)
from signoff.work.admin.people import identify
from signoff.work.services import Services

JSON = b"application/json"
# A body that is too large is read up to this size, so that the client gets the response instead of a closed connection.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
MAX_WAIT_SECONDS = 3600.0
# Exclusive upper bounds of INTEGER and BIGINT columns.
INTS = 2**31
BIGINTS = 2**63 - 1
SESSION_COOKIE = "signoff_session"
SECURE_SESSION_COOKIE = "__Host-signoff_session"
# Key in a request's scope of the cached mapping from header name to first value.
HEADERS = "signoff.headers"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
T = TypeVar("T")
Header = tuple[bytes, bytes]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
log = structlog.get_logger()


class DoorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that doors need."""

    max_body_bytes: int
    """Maximum size of a request body."""
    anonymous_role: Role | None
    """Role of callers without a token; None to refuse them."""
    enqueue_review: str
    """Review rule of `/enqueue`: `always` or `never`."""
    keep_alive_seconds: float
    """Seconds between comments on an idle event stream."""
    on_loopback: bool = False
    """True if the server listens on a loopback address only."""
    remote_commands: bool = False
    """True if admins may register command lines over HTTP from other machines."""
    cors_origins: Collection[str] = ()
    """Origins whose pages may read responses; `*` for all."""


# Dependencies that Litestar injects into a handler by the name of the parameter.
InjectedServices = NamedDependency[Services]
InjectedSettings = NamedDependency[DoorSettings]
InjectedCaller = NamedDependency[Caller]


class AsgiDoor(ABC):
    """A door in plain ASGI, without the cost of a framework: a subclass routes requests and formats errors."""

    def __init__(self, services: Services, door_settings: DoorSettings) -> None:
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; send every error, also an unexpected one, in the format of this door."""
        try:
            check_address(scope)
            await self._route(scope, receive, send)
        except SignoffError as error:
            await self._send_error(send, error)
        except Exception:
            log.exception("request_failed", path=scope["path"])
            await self._send_error(send, SignoffError())

    @abstractmethod
    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Raises SignoffError before anything is sent."""

    @staticmethod
    @abstractmethod
    async def _send_error(send: Send, error: SignoffError) -> None:
        """Send `error` as a whole response."""


def check_address(scope: Scope) -> None:
    """Raise BadRequest for NUL characters in the path or the query: no name has any, and PostgreSQL refuses them."""
    if b"%00" in scope["query_string"] or "\0" in scope["path"]:
        raise BadRequest("The path and the query must not contain NUL characters (`%00`).")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the whole body.

    Raises:
        TooLarge: The body has more than `limit` bytes. Up to MAX_DISCARDED_BYTES of it are read first, so that the
            client sees the response.
        BadRequest: The client disconnected.
    """
    chunks, size = list[bytes](), 0
    too_large = (parse_digits(header(scope, b"content-length")) or 0) > limit
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("The client disconnected before it had sent the whole body.")
        chunk = message.get("body", b"")
        size += len(chunk)
        too_large = too_large or size > limit
        if not too_large:
            chunks.append(chunk)
        if not message.get("more_body") or size > MAX_DISCARDED_BYTES:
            break
    if too_large:
        raise TooLarge(f"The body must not be larger than {limit} bytes (setting `max_body_bytes`).")
    return b"".join(chunks)


def scope_of(request: Request[Any, Any, Any]) -> Scope:
    """Return the plain ASGI scope of a Litestar request."""
    return cast("Scope", request.scope)


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with this name, which must be in lower case, as Latin-1 text."""
    first_values: dict[bytes, bytes] | None = scope.get(HEADERS)
    if first_values is None:
        first_values = scope[HEADERS] = dict(reversed([*scope["headers"]]))
    value = first_values.get(name)
    return None if value is None else value.decode("latin-1")


def text_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with this name as UTF-8 text, which is how `call_headers` writes names of models."""
    value = header(scope, name)
    return None if value is None else value.encode("latin-1").decode(errors="replace")


def parse_digits(text: str | None) -> int | None:
    """Return the number that `text` is in ASCII digits, at most BIGINTS; None for anything else."""
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) < len(str(BIGINTS)) else BIGINTS


def wait_seconds_of(scope: Scope) -> float | None:
    """Return the seconds of `Prefer: wait=N`, at most MAX_WAIT_SECONDS; 0 for `Prefer: respond-async` (RFC 7240)."""
    for preference in (header(scope, b"prefer") or "").split(","):
        name, _, value = preference.strip().lower().partition("=")
        if name == "wait" and (seconds := parse_digits(value)) is not None:
            return min(float(seconds), MAX_WAIT_SECONDS)
        if name == "respond-async":
            return 0.0
    return None


def cache_control_of(scope: Scope) -> CacheControl:
    """Return the directives of all `Cache-Control` headers of the request."""
    if header(scope, b"cache-control") is None:
        return _NO_DIRECTIVES
    return parse_cache_control(value.decode("latin-1") for name, value in scope["headers"] if name == b"cache-control")


_NO_DIRECTIVES = CacheControl()


def cache_header(job: Job) -> Header:
    """Return the header `x-signoff-cache`: `hit`, `miss` (stored for the next time), or `bypass`."""
    return (b"x-signoff-cache", (job.cache or "bypass").encode())


async def caller_of(services: Services, door_settings: DoorSettings, scope: Scope, *, sessions: bool = True) -> Caller:
    """Identify the caller: by the bearer token, else by the session cookie if `sessions`, else as anonymous.

    Raises:
        Unauthorized: There is no valid token or session, and `anonymous_role` is None.
        Forbidden: The request has a session cookie but comes from another site.
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
    """Return the session token in the request's cookies."""
    cookies = SimpleCookie()
    with contextlib.suppress(CookieError):
        cookies.load(header(scope, b"cookie") or "")
    cookie = cookies.get(SECURE_SESSION_COOKIE) or cookies.get(SESSION_COOKIE)
    return cookie.value if cookie else None


def session_cookie(scope: Scope, token: str, seconds: float) -> Header:
    """Return the header that sets the session cookie for `seconds`; an empty `token` and 0 seconds delete it."""
    secure = scope["scheme"] == "https"
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


@contextlib.asynccontextmanager
async def cancel_on_disconnect(services: Services, receive: Receive) -> AsyncGenerator[None]:
    """Cancel the block when the client disconnects, and swallow that cancellation after it."""
    task, disconnected = asyncio.current_task(), asyncio.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()
        if task is not None and not is_over:
            task.cancel()

    is_over = False
    watcher = services.runtime.background.spawn(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not disconnected.is_set() or task is None:
            raise
        task.uncancel()
    finally:
        is_over = True
        watcher.cancel()


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, headers: Iterable[Header] = ()) -> None:
    """Send a whole response."""
    length = str(len(body)).encode()
    head = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: Send, payload: Any, headers: Iterable[Header] = (), *, status: int = 200) -> None:
    """Send a whole response with `payload` as JSON."""
    await send_bytes(send, status, msgspec.json.encode(payload), JSON, headers)


def parse_json(body: bytes, kind: type[T], what: str) -> T:
    """Return the request body as a `kind`; `what` names it in the error message, such as `model`.

    Raises:
        BadBody: The body is not JSON.
        BadRequest: The body is JSON, but not of this form.
    """
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            # Decoding stops at the first wrong member; what follows it may not be JSON.
            body.decode()
            msgspec.json.decode(body, type=msgspec.Raw)
            fault = str(error)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}.") from None
    raise BadRequest(f"The body is not a valid {what}: {fault}.")


def problem(error: SignoffError) -> dict[str, Any]:
    """Return `error` as problem details (RFC 9457), the format of the native API."""
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


def detail(error: SignoffError) -> dict[str, Any]:
    """Return `error` as `{"detail", "code"}`, with `job_id` if it has one."""
    body: dict[str, Any] = {"detail": error.message, "code": error.code}
    return body if error.job_id is None else body | {"job_id": error.job_id}


def error_headers(error: SignoffError) -> Mapping[str, str]:
    """Return the headers of an error response, the same in all formats."""
    headers: dict[str, str] = {}
    if error.status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    if error.job_id is not None:
        headers["location"] = f"/api/jobs/{error.job_id}"
    # Official clients retry these statuses by themselves; here that would only repeat the work.
    if not error.retryable and (error.status in {408, 409, 429} or error.status >= 500):
        headers["x-should-retry"] = "false"
    if isinstance(error, LimitReached):
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds)))
    elif error.status in {429, 503} and error.retryable:
        headers["retry-after"] = str(max(1, ceil(error.retry_after_seconds or 0)))
    return headers


def raw_error_headers(error: SignoffError) -> list[Header]:
    """Return `error_headers` in the form of plain ASGI."""
    return [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
