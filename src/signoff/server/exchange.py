"""A request and its response on a connection, as ASGI's `receive` and `send`."""

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


class Exchange(RequestResponseCycle):
    """uvicorn's request-response cycle, at less cost: the head is checked as a whole, and leaves with its body.

    As ASGI says, the application sends at least one message with a body after the head. A head without a length
    leaves at once, because the first event of a stream may be long in coming.
    """

    _head = b""
    _ends_with_connection = False
    """True if the body ends where the connection does: HTTP/1.0 has no chunks (RFC 9112, section 6.3)."""

    def disconnect(self) -> None:
        """Let the application know, unless it has answered, that its client has left or was refused."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()

    async def send(self, message: Any) -> None:
        """Send the head of the response, or a piece of its body.

        Wait while the client reads slowly; do nothing if it has left. Raises RuntimeError for a message at the wrong
        time, a body that has another length than the head says, and a header with a line break.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or self.transport.is_closing():
            return
        kind: str = message["type"]
        if kind == "http.response.body" and self.response_started and not self.response_complete:
            self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
        elif kind == "http.response.start" and not self.response_started:
            self._begin(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"The ASGI message {kind!r} must not be sent at this point of a response.")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Build the head, and send it if no length is known."""
        lines, announces_close = [STATUS_LINE[status]], False
        for name, value in (*self.default_headers, *headers):
            lines.append(b"%b: %b\r\n" % (name, value))
            match name.lower():
                case b"content-length":
                    self.expected_content_length = int(value)
                    self.chunked_encoding = False
                case b"connection":
                    announces_close = b"close" in value.lower()
                case _:
                    pass
        # A client that got no `100 Continue` may leave the body out: its next bytes could be that, or another request.
        self.keep_alive = self.keep_alive and not (announces_close or self.waiting_for_100_continue)
        if not (self.keep_alive or announces_close):
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in {204, 304}:
            self._ends_with_connection = self.scope["http_version"] == "1.0"
            self.chunked_encoding = not self._ends_with_connection
            lines += [b"transfer-encoding: chunked\r\n"] * self.chunked_encoding
        head = b"".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines):
            raise RuntimeError("A header of the response has a line break.")
        self.response_started, self.waiting_for_100_continue = True, False
        self._head = head + b"\r\n"
        if self.chunked_encoding is not False or self._ends_with_connection:
            self._write()

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        """Send a piece of the body, after the head if that has not been sent yet."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            self._write()
        elif self.chunked_encoding:
            frame = (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            self._write(*frame, *((b"0\r\n\r\n",) if is_last else ()))
        elif self._ends_with_connection:
            self._write(body)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("The body of the response is longer than its `content-length`.")
            self._write(body)
        if is_last:
            self._end()

    def _end(self) -> None:
        """End the response, and the connection if it is not kept alive and the client has sent the whole request."""
        if self.expected_content_length != 0:
            raise RuntimeError("The body of the response is shorter than its `content-length`.")
        self.response_complete = True
        self.message_event.set()
        if not (self.keep_alive or self.more_body):
            self.transport.close()
        self.on_response()

    def _write(self, *pieces: bytes) -> None:
        head, self._head = self._head, b""
        self.transport.writelines([piece for piece in (head, *pieces) if piece])
