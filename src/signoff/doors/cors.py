"""Which web pages of other origins may ask here from a browser (WHATWG Fetch, "CORS protocol"): with a token, never
with a cookie.
"""

from __future__ import annotations

from collections.abc import Collection

from signoff.doors.http import Header, Message, Scope, Send, header

ANY = "*"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED = b"location, retry-after, x-request-id, x-should-retry, x-total-count"
PREFLIGHT_SECONDS = b"7200"


def allowed_origin(scope: Scope, origins: Collection[str]) -> str | None:
    """The origin of the page that asks, where it may read the answers."""
    origin = header(scope, b"origin")
    return origin if origin is not None and (origin in origins or ANY in origins) else None


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks whether a page may ask."""
    return scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None


async def send_preflight(scope: Scope, send: Send) -> None:
    """Yes: by any method, with any header."""
    wanted = (header(scope, b"access-control-request-headers") or "").encode("latin-1")
    headers = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def readable(origin: str, send: Send) -> Send:
    """`send`, with the headers that let a page of that origin read what is sent."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [name for name, _ in message["headers"] if name.startswith(b"x-signoff-")]
            exposed = b", ".join([EXPOSED, *ours])
            told: list[Header] = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", exposed),
                (b"vary", b"origin"),
            ]
            message["headers"] = [*message["headers"], *told]
        await send(message)

    return sending
