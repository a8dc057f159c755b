"""Client of a program that speaks JSON lines: one request and one answer per line, matched by id or by order."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Literal

import msgspec

from signoff.core.dialects.surrogates import without_lone_surrogates
from signoff.core.model import Timeouts
from signoff.errors import (
    ModelCrashed,
    ModelFailed,
    ModelGarbled,
    ModelTimedOut,
    ModelUnreachable,
    Overloaded,
    SignoffError,
    TooLarge,
)

MAX_LINE_BYTES = 32 * 2**20
MAX_BODY_BYTES = MAX_LINE_BYTES - 4096
MAX_WAITING = 4096
QUOTED_CHARS = 100  # of a faulty line, in an error message
# Timers may fire a little early.
SLACK_SECONDS = 0.05

Kind = Literal["delta", "body", "error", "failure"]
FINAL_KINDS: tuple[Kind, ...] = ("failure", "error", "body")
# Values of a member that count as absent. A `body` may be null, as the end of a stream.
NULLS = {b"", b"null"}
EMPTY_VALUES: dict[Kind, set[bytes]] = {"delta": NULLS, "failure": NULLS, "error": NULLS, "body": {b""}}
ABSENT = msgspec.Raw(b"")
# Sent by the owner to other processes when it stops. Requests without an answer by then did not reach the program.
SHUTDOWN_LINE = msgspec.json.encode({"id": "", "failure": {}}) + b"\n"


class NotDelivered(ModelUnreachable):
    """The program stopped before it received the request, so the request can be sent again at once."""


class ProgramMessage(msgspec.Struct, frozen=True):
    """Message of a program to one request: a piece of the answer, the whole answer, or an error."""

    kind: Kind
    """`delta` (a piece of a stream), `body` (the answer or its end), `error` of the program, `failure` of its owner."""
    raw: bytes
    """JSON of the piece, the body or the error."""


class _ResponseLine(msgspec.Struct):
    """Line of a program that uses ids. `failure` is set only by the owner of a process, see `shared_socket`."""

    id: str
    delta: msgspec.Raw = ABSENT
    body: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    failure: msgspec.Raw = ABSENT


class _PendingRequest:
    """Request in progress, with a queue of the messages that the caller has not read yet."""

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.queue = asyncio.Queue[ProgramMessage | SignoffError]()
        self.is_abandoned = False
        """True once its caller has left."""
        self.is_in_order = False
        """True while it waits for an answer that is matched by order."""
        self.sent_at = 0.0
        """Time of the event loop when it was written."""
        self.has_pieces = False
        """True once a `delta` has come."""
        self._size_bytes = 0

    def put(self, message: ProgramMessage) -> None:
        """Queue a message. A caller that falls behind by MAX_LINE_BYTES gets ModelGarbled, so nothing blocks."""
        self._size_bytes += len(message.raw)
        self.has_pieces = self.has_pieces or message.kind == "delta"
        if self._size_bytes > MAX_LINE_BYTES:
            text = "The model's answer is too large, or the client read it too slowly."
            self.queue.put_nowait(ModelGarbled(text, retryable=False))
        else:
            self.queue.put_nowait(message)

    async def get(self) -> ProgramMessage:
        """Return the next message. Raises the error that was queued instead."""
        message = await self.queue.get()
        if isinstance(message, SignoffError):
            raise message
        self._size_bytes -= len(message.raw)
        return message


class JsonLinesClient:
    """Connection to one program, shared by many callers.

    Each request is written as `{"id", "operation", "body"}`. The first line that comes back determines the protocol: if
    it has the id of a request, answers are matched by id; any other JSON is the answer to the oldest request, and so
    on. `by_id` is True if that is known before. Ids begin with `prefix`. `disconnect` ends the connection.
    """

    def __init__(
        self,
        name: str,
        reader: StreamReader,
        writer: StreamWriter,
        *,
        prefix: str,
        disconnect: Callable[[], None],
        by_id: bool | None = None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._prefix = prefix
        self._disconnect = disconnect
        self._count = 0
        self._by_id = by_id
        self._pending: dict[str, _PendingRequest] = {}
        self._order = deque[_PendingRequest]()
        self._write_lock = asyncio.Lock()
        self._error: ModelFailed | None = None
        self._received_at = 0.0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._is_shared = by_id is True

    @property
    def is_closed(self) -> bool:
        """True once no more requests can be sent."""
        return self._error is not None

    async def ask(self, operation: str, body: bytes, timeouts: Timeouts) -> AsyncGenerator[ProgramMessage, None]:
        """Send `body`, which is JSON, and yield the messages of its answer, up to the final one.

        Raises ModelFailed and its subclasses, TooLarge, Overloaded.
        """
        if self._error is not None:
            raise NotDelivered(f"The model {self._name} is not running.")
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"The request is too large for the model {self._name}: at most {MAX_BODY_BYTES} bytes.")
        if len(self._pending) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests already wait for the model {self._name}. Try again later.")
        self._count += 1
        pending = _PendingRequest(f"{self._prefix}-{self._count}")
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        end = started_at + timeouts.total_seconds
        due, limit = min(end, started_at + timeouts.first_byte_seconds), "first_byte_seconds"
        try:
            async with asyncio.timeout_at(due):
                await self._send(pending, operation, body)
            while True:
                async with asyncio.timeout_at(due):
                    message = await pending.get()
                yield message
                if message.kind != "delta":
                    return
                due, limit = min(end, loop.time() + timeouts.between_chunks_seconds), "between_chunks_seconds"
        except TimeoutError:
            limit = "total_seconds" if due == end else limit
            if self._is_stuck(loop.time(), getattr(timeouts, limit)):
                self._abort_stuck()
            self._start_stall_timer(started_at, timeouts.total_seconds)
            raise ModelTimedOut(f"The model {self._name} {timeouts.fault(limit)}.") from None
        finally:
            self._abandon(pending)

    def _is_stuck(self, now: float, seconds: float) -> bool:
        """Return True if a program without ids has worked on its oldest request for `seconds`."""
        return bool(self._order) and now - max(self._received_at, self._order[0].sent_at) >= seconds - SLACK_SECONDS

    def _start_stall_timer(self, sent_at: float, seconds: float) -> None:
        """Abort a program that uses ids once nothing at all has come from it for `seconds`.

        A single late answer is no sign of a stuck program while others arrive. Only the owner of the process does this,
        for all callers.
        """
        if self._is_shared or self._stall_timer is not None or self._error is not None:
            return
        received_at = self._received_at

        def check() -> None:
            self._stall_timer = None
            if self._received_at == received_at and self._error is None:
                self._abort_stuck()

        due = max(received_at, sent_at) + seconds - SLACK_SECONDS
        self._stall_timer = asyncio.get_running_loop().call_at(due, check)

    def _abort_stuck(self) -> None:
        self._abort(ModelCrashed(f"The model {self._name} did not respond, and is restarted."))

    async def _send(self, pending: _PendingRequest, operation: str, body: bytes) -> None:
        # In JSON, a line break is always whitespace between two tokens.
        flat = msgspec.Raw(body.replace(b"\n", b" ").replace(b"\r", b" "))
        line = msgspec.json.encode({"id": pending.id, "operation": operation, "body": flat})
        self._pending[pending.id] = pending
        async with self._write_lock:
            with suppress(OSError, RuntimeError):  # `read_responses` notices the end
                await self._writer.drain()  # first, so that requests given up meanwhile do not fill the buffer
            if self._error is not None:
                raise _copy_of(self._error)
            try:
                self._writer.write(line + b"\n")
            except RuntimeError as error:  # of uvloop: the program has closed its input, and can get no request
                self._disconnect()
                raise NotDelivered(f"The model {self._name} has just closed its input.") from error
            pending.sent_at = asyncio.get_running_loop().time()
            if not self._by_id:
                pending.is_in_order = True
                self._order.append(pending)

    def _abandon(self, pending: _PendingRequest) -> None:
        """Give up a request. An answer that is matched by order must still be skipped when it comes."""
        pending.is_abandoned = True
        if not pending.is_in_order:
            self._pending.pop(pending.id, None)

    async def read_responses(self) -> None:
        """Read the program's output until it ends or cannot be understood."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n") and self._error is None:
                self._handle_line(line)
        except ValueError:
            self._abort_garbled(f"a line of more than {MAX_LINE_BYTES} bytes")
        except OSError:
            pass
        self._disconnect()

    def _handle_line(self, line: bytes) -> None:
        """Pass a line on to the request that it answers; skip one that is no answer, such as a log line."""
        self._received_at = asyncio.get_running_loop().time()
        try:
            line.decode()
            line = without_lone_surrogates(line)
        except (ValueError, RecursionError):
            if line.strip() and not self._by_id and self._order:
                self._abort_garbled(
                    f"a line that is not JSON: {line[:QUOTED_CHARS].decode(errors='replace').strip()!r}"
                )
            return
        try:
            response = msgspec.json.decode(line, type=_ResponseLine)
        except msgspec.ValidationError:
            response = None
        if self._is_shared and line == SHUTDOWN_LINE:
            self.close(NotDelivered(f"The model {self._name} has just stopped."))
        elif response is not None and response.id in self._pending:
            self._handle_by_id(response, line)
        elif not self._by_id:
            self._handle_in_order(line.strip())

    def _handle_by_id(self, response: _ResponseLine, line: bytes) -> None:
        """Pass on a piece of the answer, and its end; of several ends in a line, the first of FINAL_KINDS."""
        if not self._by_id:
            self._switch_to_ids()
        pending = self._pending.get(response.id)
        if pending is None:
            return
        has_delta = bytes(response.delta) not in EMPTY_VALUES["delta"]
        if has_delta:
            pending.put(ProgramMessage("delta", bytes(response.delta)))
        finals = {"failure": response.failure, "error": response.error, "body": response.body}
        messages = [
            ProgramMessage(kind, raw) for kind in FINAL_KINDS if (raw := bytes(finals[kind])) not in EMPTY_VALUES[kind]
        ]
        if messages:
            pending.put(messages[0])
        elif not has_delta:
            self._handle_other_members(pending, line)

    def _handle_other_members(self, pending: _PendingRequest, line: bytes) -> None:
        """Take a line with none of the members of the protocol: the end of a stream, or else a flat answer."""
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        content = {name: value for name, value in members.items() if name not in _ResponseLine.__struct_fields__}
        if pending.has_pieces:
            pending.put(ProgramMessage("body", b"null"))
        elif content:
            pending.put(ProgramMessage("body", msgspec.json.encode(content)))
        else:
            fault = "a line with the `id` of a request and nothing else; add a `body`, which may be null"
            pending.queue.put_nowait(ModelGarbled(f"The model {self._name} wrote {fault}."))

    def _switch_to_ids(self) -> None:
        """Match answers by id from now on."""
        self._by_id = True
        self._order.clear()
        for pending in list(self._pending.values()):
            pending.is_in_order = False
            if pending.is_abandoned:
                del self._pending[pending.id]

    def _handle_in_order(self, line: bytes) -> None:
        """Take a line as the answer to the oldest request, and match answers by order from now on."""
        if not self._order:
            if self._by_id is False:
                self._abort_garbled("more lines than it received requests")
            return
        self._by_id = False
        pending = self._order.popleft()
        pending.is_in_order = False
        self._pending.pop(pending.id, None)
        pending.put(ProgramMessage("body", line))

    def _abort_garbled(self, fault: str) -> None:
        """Abort the program: the answers that follow can no longer be matched to requests."""
        self._abort(ModelGarbled(f"The model {self._name} wrote {fault}. Write only answers to stdout."))

    def _abort(self, error: ModelFailed) -> None:
        self.close(error)
        self._disconnect()

    def close(self, error: ModelFailed) -> None:
        """Fail all pending and later requests with `error`."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._error is None:
            self._error = error
            for pending in self._pending.values():
                pending.queue.put_nowait(_copy_of(error))

    def close_crashed(self, reason: str) -> None:
        """Fail all requests, because the program has ended. `reason` continues a sentence that begins with its name."""
        self.close(ModelCrashed(f"The model {self._name} {reason}"))


def _copy_of(error: ModelFailed) -> ModelFailed:
    """Return a new error like `error`, so that no two callers raise the same object."""
    return type(error)(error.message)
