"""The requests of `POST /v1/messages/batches`, which are read and checked while the body comes."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from hashlib import blake2b

import msgspec

from signoff.core.batch import MAX_MESSAGES
from signoff.core.decode import decode_json, without_mark
from signoff.core.json_items import ItemReader
from signoff.doors.http import header, parse_json, read_body
from signoff.doors.openai.body import BodyStream
from signoff.doors.openai.files import LocalRequest
from signoff.errors import BadBody, BadRequest, MissingParameter, TooLarge
from signoff.work.batches.messages import NewMessage

REQUESTS = "requests"
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
DIGEST_BYTES = 16
# So much of a body is read before other work of this process gets a turn.
TURN_BYTES = 16 * 1024
_BYTE = re.compile(r" \(byte \d+\)")


class NewMessageBatch(msgspec.Struct, frozen=True):
    """Body of `POST /v1/messages/batches`."""

    requests: list[NewMessage]
    """Requests with ids of the caller's own."""


class _Body(msgspec.Struct):
    """Body with a number in the place of each request."""

    requests: list[int]


async def read_requests(request: LocalRequest, body: BodyStream) -> AsyncGenerator[list[NewMessage]]:
    """Yield the requests of a body, checked, as many at a time as have come. The body is whole only at the end.

    Raises:
        TooLarge: The body has more than `max_file_bytes` bytes, or a request more than `max_body_bytes`.
        BadRequest: The body, or a request, is not valid, or the client disconnected.
        UnsupportedEncoding: `Content-Encoding` has a coding that is not known.
    """
    reader = RequestReader(request.door_settings.max_body_bytes)
    async for piece in _pieces(request, body):
        for start in range(0, len(piece), TURN_BYTES):
            yield list(reader.feed(piece[start : start + TURN_BYTES]))
            await asyncio.sleep(0)
    reader.finish()


async def _pieces(request: LocalRequest, body: BodyStream) -> AsyncGenerator[bytes]:
    """Yield the pieces of the body. A compressed one, which may become large, is read as all other bodies are."""
    settings = request.door_settings
    if header(request.scope, b"content-encoding") is not None:
        yield await read_body(request.scope, body.receive, settings.max_body_bytes)
        return
    limit = settings.max_file_bytes
    too_large = TooLarge(f"The body must not be larger than {limit} bytes (setting `max_file_bytes`); split the batch.")
    if body.declared_bytes > limit:
        raise too_large
    async for piece in body.pieces():
        if body.size_bytes > limit:
            raise too_large
        yield piece


class RequestReader:
    """Reader and checker of the requests in a body that comes in pieces.

    Args:
        max_bytes: Maximum size of a request, and of all that the body has beside its requests.
    """

    def __init__(self, max_bytes: int) -> None:
        self._items = ItemReader(REQUESTS, max_bytes)
        self._custom_ids = set[bytes]()

    def feed(self, data: bytes) -> Iterator[NewMessage]:
        """Yield the requests that end in the next piece of the body. Raises BadRequest, TooLarge."""
        for text in self._items.feed(data):
            if self._items.count > MAX_MESSAGES:
                raise BadRequest(f"`requests` must have 1 to {MAX_MESSAGES} requests (got more).")
            request = _parse(text, self._items.count - 1)
            self._check(request, self._items.count - 1)
            yield request

    def finish(self) -> None:
        """Check that the body was a whole batch. Raises BadRequest."""
        frame = without_mark(self._items.end())
        try:
            parse_json(frame, _Body, "message batch")
        except BadBody as error:  # the position is one in the frame
            raise BadBody(_BYTE.sub("", error.message) if self._items.count else error.message) from None
        if not self._items.count:
            raise BadRequest(f"`requests` must have 1 to {MAX_MESSAGES} requests (got 0).")

    def _check(self, request: NewMessage, number: int) -> None:
        if not CUSTOM_ID.fullmatch(request.custom_id):
            text = "must be 1 to 64 letters, digits, `_` or `-`"
            raise BadRequest(f"`requests.{number}.custom_id` {text} (got {request.custom_id[:100]!r}).")
        digest = blake2b(request.custom_id.encode(), digest_size=DIGEST_BYTES).digest()
        if digest in self._custom_ids:
            raise BadRequest(f"`requests.{number}.custom_id` {request.custom_id!r} occurs twice; use each one once.")
        if not bytes(request.params).lstrip().startswith(b"{"):
            raise BadRequest(f"`requests.{number}.params` must be an object.")
        self._custom_ids.add(digest)


def _parse(text: bytes, number: int) -> NewMessage:
    """Return the request with this text and number. Raises BadRequest."""
    try:
        return decode_json(text, NewMessage)
    except msgspec.ValidationError:
        pass
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}, in `requests.{number}`.") from None
    try:
        parse_json(b'{"requests":[%b]}' % text, NewMessageBatch, "message batch")
    except MissingParameter as error:
        raise MissingParameter((error.param or "").replace("requests[0]", f"requests[{number}]")) from None
    except BadRequest as error:
        raise BadRequest(error.message.replace("requests[0]", f"requests[{number}]")) from None
    raise BadRequest(f"`requests.{number}` is not valid.")
