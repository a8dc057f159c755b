"""Body of a request that is read piece by piece, whatever its size."""

from collections.abc import AsyncGenerator

from signoff.doors.http import MAX_DISCARDED_BYTES, Message, Receive, Scope, header, parse_digits
from signoff.errors import BadRequest


class BodyStream:
    """Body of a request, of which no more than a piece is kept."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._has_more = True
        self._awaits_continue = (header(scope, b"expect") or "").lower() == "100-continue"
        self.declared_bytes = parse_digits(header(scope, b"content-length")) or 0
        """Size that the client has declared; 0 if it has not."""
        self.size_bytes = 0
        """Number of bytes that were read so far."""

    async def receive(self) -> Message:
        """Return the next message of the connection, as the ASGI function does."""
        self._awaits_continue = False
        message = await self._receive()
        self._has_more = message["type"] == "http.request" and message.get("more_body", False)
        self.size_bytes += len(message.get("body", b""))
        return message

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the pieces of the body. Raises BadRequest if the client disconnects before its end."""
        while self._has_more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise BadRequest("The client disconnected before it had sent the whole body.")
            yield message.get("body", b"")

    async def discard(self) -> None:
        """Read on for a while, so that the client sees the response. Raises BadRequest if it disconnects."""
        if self._awaits_continue:  # nothing is on its way
            return
        last_bytes = self.size_bytes + MAX_DISCARDED_BYTES
        async for _ in self.pieces():
            if self.size_bytes >= last_bytes:
                break
