"""Cross-origin requests of browsers (WHATWG Fetch, "CORS protocol"): allowed with a token, never with a cookie."""

from collections.abc import Collection

from signoff.doors.http import Header, Message, Scope, Send, header

ANY = "*"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED = (
    b"link, location, retry-after, retry-after-ms, x-request-id, x-should-retry, x-signoff-cache, x-signoff-code, "
    b"x-signoff-job, x-signoff-model, x-total-count, x-total-is-capped"
)
# Further headers that a response may have.
EXPOSED_PREFIXES = (b"x-signoff-", b"x-ratelimit-")
PREFLIGHT_SECONDS = b"7200"


def allowed_origin(scope: Scope, origins: Collection[str]) -> str | None:
    """Return the origin of the requesting page if it is one of `origins`, else None."""
    origin = header(scope, b"origin")
    return origin if origin is not None and (origin in origins or ANY in origins) else None


def is_preflight(scope: Scope) -> bool:
    """Return True for a browser's request for permission to send another one."""
    return scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None


async def send_preflight(scope: Scope, send: Send) -> None:
    """Allow every method, and every header that the preflight request names."""
    requested_headers = (header(scope, b"access-control-request-headers") or "").encode("latin-1")
    headers = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", requested_headers),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def with_cors_headers(origin: str | None, send: Send) -> Send:
    """Return `send` with the headers added that let a page of `origin` read the response.

    Without an `origin` that may, only `vary` is added, so that no cache keeps the response for pages that may.
    """

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Header] = [*message["headers"], (b"vary", b"origin")]
            if origin is not None:
                own_headers = [name for name, _ in message["headers"] if name.lower().startswith(EXPOSED_PREFIXES)]
                headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
                headers.append((b"access-control-expose-headers", b", ".join([EXPOSED, *own_headers])))
            message["headers"] = headers
        await send(message)

    return send_with_headers
