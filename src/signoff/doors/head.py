"""HEAD requests (RFC 9110, section 9.3.2): the response to a GET of the same path, without its body."""

from signoff.doors.http import HEADERS, Message, Scope, Send

# Paths at which a GET does something that must not happen twice, or unseen: sign-in links, calls of models.
ACTING_PATHS = ("/signin/", "/get/", "/post/")


def as_get(scope: Scope) -> Scope:
    """Return the scope of the GET with the headers of this request; it asks for no event stream, which has no end."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
    return {**scope, "method": "GET", "headers": headers, HEADERS: None}


def without_body(send: Send) -> Send:
    """Return a `send` that leaves out the body; the headers, such as the length, remain."""

    async def send_without_body(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_without_body
