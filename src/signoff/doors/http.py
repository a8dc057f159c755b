"""Plain ASGI for all HTTP doors: reading requests, sending responses, and a base for doors without a framework."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec
import structlog

from signoff.core.access import Role
from signoff.core.cache import CacheControl, parse_cache_control
from signoff.core.choices import choice_of, choices_of
from signoff.core.content_coding import decode_content
from signoff.core.decode import decode_json, form_fault, without_mark
from signoff.core.job import Job
from signoff.errors import (
    BadBody,
    BadRequest,
    Interrupted,
    SignoffError,
    TooLarge,
)
from signoff.work.services import Services

JSON = b"application/json"
# A body that is too large is read up to this size, so that the client gets the response instead of a closed connection.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
MAX_WAIT_SECONDS = 3600.0
# Exclusive upper bounds of INTEGER and BIGINT columns.
INTS = 2**31
BIGINTS = 2**63 - 1
# Key in a request's scope of the cached mapping from header name to first value.
HEADERS = "signoff.headers"
# Key in the extensions of a request's scope of its connection: a `server.protocol.ClientConnection`.
CONNECTION = "signoff.connection"
# Key in a request's scope of the path at which another application has mounted this one.
MOUNT = "signoff.mount"
# Key in a request's scope of the maximum size of its body, if that is less than the setting.
BODY_LIMIT = "signoff.body_limit"
# Key of a scope: the function that receives the body of the request piece by piece, where it is read as a whole.
RECEIVE = "signoff.receive"
# Key in a request's scope of its id, which every response has as a header.
REQUEST_ID = "signoff.request_id"
LOOPBACK = ("127.0.0.1", "::1")
T = TypeVar("T")
C = TypeVar("C", bound=str)
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
    max_file_bytes: int
    """Maximum size of an uploaded file, and of the body of a batch of messages."""
    public_url: str | None = None
    """Address of this server for links; None for the one that the client used."""
    anonymous_role: Role | None
    """Role of callers without a token; None to refuse them."""
    enqueue_review: str
    """Review rule of `/enqueue`: `always` or `never`."""
    keep_alive_seconds: float
    """Seconds between comments on an idle event stream."""
    allowed_hosts: Collection[str] = ()
    """Host names, besides addresses and localhost, at which callers without a token are served."""
    on_loopback: bool = False
    """True if the server listens on a loopback address only."""
    remote_commands: bool = False
    """True if admins may register command lines over HTTP from other machines."""
    cors_origins: Collection[str] = ()
    """Origins whose pages may read responses; `*` for all."""
    queues: Mapping[str, str | None] = {}
    """Models by the names of queues that requests may select them by; None for the default model."""
    access_log: bool = False
    """True to log one line for each request."""
    metrics_token: str | None = None
    """Token with which the metrics may be read; None for those of admins alone."""


class AsgiDoor(ABC):
    """A door in plain ASGI, without the cost of a framework: a subclass routes requests and formats errors."""

    def __init__(self, services: Services, door_settings: DoorSettings) -> None:
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; send every error, also an unexpected one, in the format of this door."""
        try:
            await self._route(scope, receive, send)
        except SignoffError as error:
            await self._send_error(scope, send, error)
        except asyncio.CancelledError:
            if not self._services.runtime.shutdown.take_cancellation():
                raise
            with contextlib.suppress(RuntimeError):  # the response has begun
                await self._send_error(scope, send, Interrupted())
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            await self._send_error(scope, send, SignoffError())

    @abstractmethod
    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Raises SignoffError before anything is sent."""

    @abstractmethod
    async def _send_error(self, scope: Scope, send: Send, error: SignoffError) -> None:
        """Send `error` as a whole response."""


def check_nul_characters(scope: Scope) -> None:
    """Raise BadRequest for NUL characters in the path or the query, which PostgreSQL refuses in texts."""
    if b"%00" in scope["query_string"] or "\0" in scope["path"]:
        raise BadRequest("The path and the query must not contain NUL characters (`%00`).")


async def read_body(scope: Scope, receive: Receive, limit: int, *, discarded_bytes: int = MAX_DISCARDED_BYTES) -> bytes:
    """Read the whole body; return it decoded, and without a byte order mark, which JSON does not allow.

    Raises:
        TooLarge: The body has more than `limit` bytes. Up to `discarded_bytes` of it are read first, so that the
            client sees the response, unless the client waits for a `100 Continue` before it sends any.
        UnsupportedEncoding: `Content-Encoding` has a coding that is not known.
        BadRequest: The client disconnected, or the body is not what `Content-Encoding` says.
    """
    chunks: list[bytes] = []
    size = 0
    too_large = (parse_digits(header(scope, b"content-length")) or 0) > limit
    if too_large and (header(scope, b"expect") or "").lower() == "100-continue":
        discarded_bytes = 0
    while not too_large or size < discarded_bytes:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("The client disconnected before it had sent the whole body.")
        chunk = message.get("body", b"")
        size += len(chunk)
        too_large = too_large or size > limit
        if not too_large:
            chunks.append(chunk)
        if not message.get("more_body"):
            break
    if too_large:
        raise TooLarge(f"The body must not be larger than {limit} bytes; send a smaller one.")
    body = b"".join(chunks)
    if (coding := header(scope, b"content-encoding")) is not None:
        body = decode_content(body, coding, limit)
    return without_mark(body)


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with this name, which must be in lower case, as Latin-1 text."""
    value = (scope.get(HEADERS) or headers_of(scope)).get(name)
    return None if value is None else value.decode("latin-1")


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the first value of each header, by its name in lower case."""
    first_values: dict[bytes, bytes] | None = scope.get(HEADERS)
    if first_values is None:
        first_values = scope[HEADERS] = dict(reversed(scope["headers"]))
    return first_values


def text_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header with this name as UTF-8 text, which is how `call_headers` writes names of models."""
    value = header(scope, name)
    return None if value is None else value.encode("latin-1").decode(errors="replace")


def scheme_of(scope: Scope) -> str:
    """Return the scheme that the client uses: a reverse proxy on this host may say that it is https."""
    scheme: str = scope["scheme"]
    if (scope.get("client") or ("",))[0] in LOOPBACK:
        forwarded = (header(scope, b"x-forwarded-proto") or "").strip().lower()
        return forwarded if forwarded in {"http", "https"} else scheme
    return scheme


def client_of(scope: Scope) -> str:
    """Return the address of the client; an empty text if it is unknown.

    It is that of the connection, or a forwarded one if uvicorn was told to trust the proxy (`FORWARDED_ALLOW_IPS`).
    """
    return (scope.get("client") or ("",))[0]


def parse_digits(text: str | None) -> int | None:
    """Return the number that `text` is in ASCII digits, at most BIGINTS; None for anything else."""
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) < len(str(BIGINTS)) else BIGINTS


def wait_seconds_of(scope: Scope) -> float | None:
    """Return the seconds of `Prefer: wait=N`, at most MAX_WAIT_SECONDS; 0 for `Prefer: respond-async` (RFC 7240)."""
    text = header(scope, b"prefer")
    for preference in () if text is None else text.split(","):
        name, _, value = preference.strip().lower().partition("=")
        if name == "wait" and (seconds := parse_digits(value)) is not None:
            return min(float(seconds), MAX_WAIT_SECONDS)
        if name == "respond-async":
            return 0.0
    return None


def is_retry(scope: Scope) -> bool:
    """Return True if the client says that it sent the same request before and got no answer, as OpenAI's clients do."""
    return headers_of(scope).get(b"x-stainless-retry-count", b"0") not in {b"0", b""}


def cache_control_of(scope: Scope) -> CacheControl:
    """Return the directives of all `Cache-Control` headers of the request."""
    if b"cache-control" not in headers_of(scope):
        return _NO_DIRECTIVES
    return parse_cache_control(value.decode("latin-1") for name, value in scope["headers"] if name == b"cache-control")


_NO_DIRECTIVES = CacheControl()


def cache_header(job: Job) -> Header:
    """Return the header `x-signoff-cache`: `hit`, `miss` (stored for the next time), or `bypass`."""
    return (b"x-signoff-cache", (job.cache or "bypass").encode())


class ClientWatch:
    """Context that is cancelled when the client disconnects, and swallows that cancellation.

    The connection calls back if it can, as that of `signoff serve` does; under other servers, a task waits.
    """

    def __init__(self, services: Services, scope: Scope, receive: Receive) -> None:
        self._services = services
        extensions: dict[str, Any] = scope.get("extensions") or {}
        self._connection = extensions.get(CONNECTION)
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_gone = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._connection is None:
            self._watcher = self._services.runtime.background.spawn(self._watch())
        elif self._connection.is_gone:
            asyncio.get_running_loop().call_soon(self._cancel)  # at the first wait of the block, if it has one
        else:
            self._connection.watch(self._cancel)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        task, self._task = self._task, None
        if self._watcher is not None:
            self._watcher.cancel()
        elif self._connection is not None:
            self._connection.on_gone.discard(self._cancel)
        if not self._is_gone or task is None:
            return False
        task.uncancel()
        return isinstance(error, asyncio.CancelledError)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._is_gone = True
            self._task.cancel()


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, headers: Iterable[Header] = ()) -> None:
    """Send a whole response."""
    length = str(len(body)).encode()
    head = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: Send, payload: Any, headers: Iterable[Header] = (), *, status: int = 200) -> None:
    """Send a whole response with `payload` as JSON."""
    await send_bytes(send, status, msgspec.json.encode(payload), JSON, headers)


class Reply(msgspec.Struct, frozen=True):
    """A response of which the body is JSON."""

    payload: Any
    """Body, before it is encoded."""
    status: int = 200
    """HTTP status."""
    headers: Mapping[str, str] = {}
    """Headers beside those of the body."""


def parse_json(body: bytes, kind: type[T], what: str) -> T:
    """Return the request body as a `kind`; `what` names it in the error message, such as `model`.

    Raises:
        BadBody: The body is not JSON.
        MissingParameter: A member is missing.
        BadRequest: The body is JSON, but not of this form.
    """
    try:
        return decode_json(body, kind)
    except msgspec.ValidationError as error:
        raise form_fault(error, f"The body is not a valid {what}") from None
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}.") from None


def parse_choice(name: str, text: str, choices: Sequence[C]) -> C:
    """Return the one of `choices` that the parameter `name` is, in any case. Raises BadRequest."""
    if (choice := choice_of(text, choices)) is None:
        raise BadRequest(f"`{name}` must be one of {', '.join(choices)} (got {text[:100]!r}).")
    return choice


def parse_choices(name: str, text: str, choices: Sequence[C]) -> tuple[C, ...]:
    """Return those of `choices` that the parameter `name` lists, in any case, each once. Raises BadRequest."""
    if (values := choices_of(text, choices)) is None:
        raise BadRequest(f"`{name}` must be a list of {', '.join(choices)}, separated by commas.")
    return values


def null() -> msgspec.Raw:
    """Return the JSON value of a member that a body leaves out; as a factory it keeps the value out of schemas."""
    return msgspec.Raw(b"null")


def text_unless_null(value: msgspec.Raw) -> str | None:
    """Return a JSON value as text; None for null."""
    text = bytes(value).decode()
    return None if text == "null" else text


class _ModelMember(msgspec.Struct):
    model: str | None = None


def model_in(body: bytes) -> str | None:
    """Return the text in the member `model` of a JSON value; None if it has none. Raises BadBody."""
    try:
        return parse_json(body, _ModelMember, "body").model
    except BadBody:
        raise
    except BadRequest:
        return None  # the body may be any JSON value


def parse_form(body: bytes, kind: type[T], what: str) -> T:
    """Return the URL-encoded fields of an HTML form as a `kind`; of a repeated field, the first. Raises BadRequest."""
    try:
        fields = {name: values[0] for name, values in parse_qs(body.decode(), errors="strict").items()}
    except ValueError as error:
        raise BadRequest(f"The form is not URL-encoded UTF-8: {error}.") from None
    return parse_fields(fields, kind, what)


def parse_fields(fields: Mapping[str, object], kind: type[T], what: str) -> T:
    """Return the values of a form as a `kind`, such as the body of a request to the API, with the same limits.

    To call a struct would check nothing, so pages make each body of a request here. Raises BadRequest.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise form_fault(error, f"The form is not a valid {what}") from None
