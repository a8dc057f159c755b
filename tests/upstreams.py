"""A model server that misbehaves as the first part of a path tells it to, such as `/cut-stream/v1/completions`."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Odd spaces, escapes and numbers: whoever decodes and encodes again is found out.
ANSWER = (
    b'{ "id":"chatcmpl-1",\t"object": "chat.completion", "created":1.70e9, "model": "fake", "choices":[ {"index":0,'
    b' "message":{"role":"assistant","content":"caf\\u00e9 caf\xc3\xa9"}, "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens":3, "completion_tokens":2,"total_tokens":5} }\n'
)


def event(data: str, *, end: str = "\n") -> bytes:
    return f"data: {data}{end}{end}".encode()


def piece(content: str) -> str:
    return (
        f'{{"id": "c1", "object":"chat.completion.chunk","choices":[ {{"index":0,"delta":{{"content":"{content}"}}}}]}}'
    )


PIECES = [piece("one"), piece(" two"), piece(' caf\\u00e9 \\"error\\"'), piece(" caf\u00e9")]
DONE = event("[DONE]")
EVENTS = [*map(event, PIECES), DONE]
CRLF_EVENTS = [event(data, end="\r\n") for data in [*PIECES, "[DONE]"]]
COMMENTED_EVENTS = [b": hello\n\n", EVENTS[0], b"event: chunk\nid: 7\n" + EVENTS[1], b":\n\n", *EVENTS[2:]]
RESPONSE_EVENTS = [
    b'event: response.created\ndata: {"type": "response.created", "response":{"error":null}}\n\n',
    b'event: response.completed\ndata: {"type": "response.completed","response":{}}\n\n',
]


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class FakeUpstream:
    """The server as a test sees it."""

    url: str = ""
    requests: list[Seen] = field(default_factory=list[Seen])
    sent_bytes: int = 0
    opened: int = 0
    """Connections, ever."""
    open: int = 0
    """Connections, now."""
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody was sent all that will ever come, and read what of it fits no buffer."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it for `deaf` to read on."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])
    _closed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def at(self, behaviour: str) -> str:
        """The base url under which the server behaves like that."""
        assert behaviour.partition("/")[0] in BEHAVIOURS, f"{behaviour} is none of {', '.join(BEHAVIOURS)}"
        return f"{self.url}/{behaviour}"

    async def closed_within(self, seconds: float) -> bool:
        """Whether no connection is open any more, at the latest in so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._closed:
                await self._closed.wait_for(lambda: self.open == 0)
        return self.open == 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, a request after the other."""
        self.opened += 1
        self.open += 1
        self._writers.add(writer)
        number = 0
        try:
            while not writer.is_closing():
                number += 1
                exchange = Exchange(self, reader, writer, await head_of(reader), number)
                self.requests.append(exchange.request)
                await BEHAVIOURS[exchange.request.path.split("/")[1]](exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)
            self.open -= 1
            async with self._closed:
                self._closed.notify_all()

    async def stop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        assert await self.closed_within(5)


@asynccontextmanager
async def misbehaving(port: int = 0) -> AsyncGenerator[FakeUpstream, None]:
    """The server, on a port of its own."""
    fake = FakeUpstream()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", port)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        await fake.stop()


@contextmanager
def full() -> Generator[str, None, None]:
    """The url of a server that never gets round to taking a connection: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting: list[socket.socket] = []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()


async def head_of(reader: asyncio.StreamReader) -> Seen:
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    fields = (line.split(": ", 1) for line in lines)
    method, path, _ = start.split(" ")
    return Seen(method=method, path=path, headers={name.lower(): value for name, value in fields})


@dataclass
class Exchange:
    """One request, and the words in which behaviours answer it."""

    fake: FakeUpstream
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: Seen
    number: int
    """Which request of its connection this is, from 1."""

    async def read(self) -> None:
        self.request.body = await self.reader.readexactly(int(self.request.headers.get("content-length", "0")))

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():  # where asyncio writes into the void, uvloop raises RuntimeError
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()
        self.fake.sent_bytes += len(data)

    async def head(self, status: str, *headers: str) -> None:
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())

    async def whole(self, body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> None:
        await self.read()
        await self.head(status, f"content-type: {kind}", f"content-length: {len(body)}", *headers)
        await self.send(body)

    async def answer(self, body: bytes) -> None:
        """JSON, after the request was read."""
        await self.head("200 OK", "content-type: application/json", f"content-length: {len(body)}")
        await self.send(body)

    async def begin(self, *parts: bytes, kind: str = "text/event-stream") -> None:
        await self.read()
        await self.head("200 OK", f"content-type: {kind}", "transfer-encoding: chunked")
        for part in parts:
            await self.part(part)

    async def part(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def stream(self, *parts: bytes, kind: str = "text/event-stream") -> None:
        await self.begin(*parts, kind=kind)
        await self.part(b"")

    async def hang(self) -> None:
        """Sends no more; ends when the other side has left."""
        self.fake.stuck.set()
        while await self.reader.read(2**16):
            pass
        self.writer.close()

    def cut(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        peer: socket.socket = self.writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(act: Behaviour) -> Behaviour:
    BEHAVIOURS[act.__name__.replace("_", "-")] = act
    return act


# Answers as they should be.


@behaviour
async def answer(exchange: Exchange) -> None:
    await exchange.whole(ANSWER, "set-cookie: a=b")


@behaviour
async def mirror(exchange: Exchange) -> None:
    """Answers with the body that it was asked with."""
    await exchange.read()
    await exchange.answer(exchange.request.body)


@behaviour
async def stream(exchange: Exchange) -> None:
    await exchange.stream(*EVENTS)


@behaviour
async def answer_when_woken(exchange: Exchange) -> None:
    await exchange.read()
    exchange.fake.stuck.set()
    await exchange.fake.wake.wait()
    await exchange.answer(ANSWER)


@behaviour
async def stream_when_woken(exchange: Exchange) -> None:
    """The first event at once, the others when the test says so."""
    await exchange.begin(EVENTS[0])
    exchange.fake.stuck.set()
    await exchange.fake.wake.wait()
    await exchange.part(b"".join(EVENTS[1:]))
    await exchange.part(b"")


@behaviour
async def stream_of_crlf(exchange: Exchange) -> None:
    await exchange.stream(*CRLF_EVENTS)


@behaviour
async def stream_of_bytes(exchange: Exchange) -> None:
    """Every byte is a packet."""
    await exchange.stream(*(bytes([byte]) for byte in b"".join(CRLF_EVENTS)))


@behaviour
async def stream_at_once(exchange: Exchange) -> None:
    """One packet cannot be told from one event."""
    await exchange.stream(b"".join(EVENTS))


@behaviour
async def stream_with_comments(exchange: Exchange) -> None:
    await exchange.stream(*COMMENTED_EVENTS)


@behaviour
async def stream_as_text(exchange: Exchange) -> None:
    await exchange.stream(*EVENTS, kind="text/plain; charset=utf-8")


@behaviour
async def stream_until_close(exchange: Exchange) -> None:
    """As HTTP/1.0 did: the end of the connection is the end of the body."""
    await exchange.read()
    await exchange.head("200 OK", "content-type: text/event-stream", "connection: close")
    await exchange.send(b"".join(EVENTS))
    exchange.cut()


@behaviour
async def stream_after_a_thought(exchange: Exchange) -> None:
    """The headers come at once, what they announce much later."""
    await exchange.begin()
    await asyncio.sleep(0.2)
    await exchange.part(b"".join(EVENTS))
    await exchange.part(b"")


@behaviour
async def stream_of_a_response(exchange: Exchange) -> None:
    await exchange.stream(*RESPONSE_EVENTS)


@behaviour
async def stream_without_last_blank_line(exchange: Exchange) -> None:
    await exchange.stream(*EVENTS[:-1], b"data: [DONE]\n")


MESSAGE = [
    b'event: message_start\ndata: {"type": "message_start", "message": {"id": "msg_1", "error": null}}\n\n',
    b'event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"text": "caf\\u00e9"}}\n\n',
    b'event: message_delta\ndata: {"type": "message_delta", "usage": {"output_tokens": 2}}\n\n',
    b"data: 3\n\n",
    b"data: no JSON \xff\n\n",
    b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
]


@behaviour
async def message(exchange: Exchange) -> None:
    """As Anthropic streams: nobody says `[DONE]`."""
    await exchange.stream(*MESSAGE)


@behaviour
async def message_without_last_blank_line(exchange: Exchange) -> None:
    await exchange.stream(*MESSAGE[:-1], MESSAGE[-1][:-1])


@behaviour
async def rows(exchange: Exchange) -> None:
    await exchange.whole(ROWS, kind="application/x-ndjson")


ROWS = b'{"a": 1}\n{"a": 2}\n'


@behaviour
async def stream_that_lingers(exchange: Exchange) -> None:
    """Everything has been said, but the body does not end."""
    await exchange.begin(*EVENTS)
    await exchange.hang()


@behaviour
async def no_edits(exchange: Exchange) -> None:
    """Knows chats alone."""
    if exchange.request.path.endswith("/v1/chat/completions"):
        return await answer(exchange)
    return await exchange.whole(b'{"error": {"message": "Not here."}}', status="404 Not Found")


@behaviour
async def keep(exchange: Exchange) -> None:
    """Keeps responses, and says of all else what was asked."""
    await exchange.read()
    request, number = exchange.request, len(exchange.fake.requests)
    if (request.method, request.path) != ("POST", "/keep/v1/responses"):
        told = json.dumps({"id": request.path.split("?")[0].split("/")[-1], "was": f"{request.method} {request.path}"})
        return await exchange.answer(told.encode())
    name = f"resp_{number}Kept"
    text = {"type": "output_text", "text": "kept", "annotations": []}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    whole = {"id": name, "object": "response", "status": "completed", "output": [message], "usage": KEPT_USAGE}
    if not json.loads(request.body).get("stream"):
        return await exchange.answer(json.dumps(whole).encode())
    await exchange.head("200 OK", "content-type: text/event-stream", "transfer-encoding: chunked")
    for kind in ("created", "completed"):
        data = json.dumps({"type": f"response.{kind}", "response": whole})
        await exchange.part(f"event: response.{kind}\ndata: {data}\n\n".encode())
        if b"and hang" in request.body:
            return await exchange.hang()
    return await exchange.part(b"")


KEPT_USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


@behaviour
async def gone(exchange: Exchange) -> None:
    """As servers answer a DELETE."""
    await exchange.read()
    await exchange.head("204 No Content")


SOUND = bytes(range(256)) * 40


@behaviour
async def speech(exchange: Exchange) -> None:
    await exchange.whole(SOUND, kind="audio/mpeg")


SPOKEN = [
    event('{ "type":"speech.audio.delta","audio":"AAA"}'),
    event('{"type":"speech.audio.done", "audio":"BBB"}'),
]


@behaviour
async def spoken(exchange: Exchange) -> None:
    """Speech in events, which are nobody else's."""
    await exchange.stream(*SPOKEN)


@behaviour
async def transcript(exchange: Exchange) -> None:
    await exchange.whole(b'{ "text":"hello" }')


@behaviour
async def recorded(exchange: Exchange) -> None:
    """What the corpus has under the name that follows in the path."""
    await exchange.read()
    name = "/".join(exchange.request.path.split("/")[2:4])
    await exchange.send((CORPUS / f"{name}.http").read_bytes())
    exchange.cut()


# Silence.


@behaviour
async def deaf(exchange: Exchange) -> None:
    """Reads no body until the test says so, then all that is left of it."""
    await asyncio.sleep(0.2)  # by then every buffer between the two is full
    exchange.fake.stuck.set()
    await exchange.fake.wake.wait()
    while data := await exchange.reader.read(2**16):
        exchange.request.body += data
    exchange.cut()


@behaviour
async def hang_before_headers(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.hang()


@behaviour
async def slow_headers(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await asyncio.sleep(0.01)
        await exchange.send(b"x: y\r\n")


@behaviour
async def hang_after_headers(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.hang()


@behaviour
async def hang_mid_stream(exchange: Exchange) -> None:
    await exchange.begin(EVENTS[0])
    await exchange.hang()


@behaviour
async def hang_mid_body(exchange: Exchange) -> None:
    """What was sent fits no socket's buffer, so that at `stuck` the other side must have begun to read it."""
    await exchange.read()
    await exchange.head("200 OK", "content-type: application/json", f"content-length: {48 * 2**20}")
    exchange.writer.transport.set_write_buffer_limits(high=0)
    for _ in range(32):
        await exchange.send(b" " * 2**20)
    await exchange.hang()


@behaviour
async def trickle(exchange: Exchange) -> None:
    """Never silent, never done."""
    await exchange.begin()
    while True:
        await asyncio.sleep(0.01)
        await exchange.part(b": still here\n\n")


@behaviour
async def flood(exchange: Exchange) -> None:
    """Faster than anybody reads."""
    await exchange.begin()
    while True:
        await exchange.part(b":" + b" " * 50_000 + b"\n\n")


# Ends that come too soon.


@behaviour
async def leave(exchange: Exchange) -> None:
    await exchange.read()
    exchange.cut()


@behaviour
async def leave_when_reused(exchange: Exchange) -> None:
    """As a server whose patience with an idle connection ends when the next request is on its way."""
    if exchange.number == 1:
        return await answer(exchange)
    return await leave(exchange)


@behaviour
async def leave_when_reused_then_always(exchange: Exchange) -> None:
    if exchange.fake.opened == 1 and exchange.number == 1:
        return await answer(exchange)
    return await leave(exchange)


@behaviour
async def cut_stream(exchange: Exchange) -> None:
    await exchange.begin(*EVENTS[:2])
    exchange.cut()


@behaviour
async def cut_event(exchange: Exchange) -> None:
    await exchange.begin(*EVENTS[:2], EVENTS[2][:20])
    exchange.cut()


@behaviour
async def end_stream_early(exchange: Exchange) -> None:
    """The body ends as it should, but nobody said `[DONE]`."""
    await exchange.stream(*EVENTS[:2])


@behaviour
async def reset_stream(exchange: Exchange) -> None:
    await exchange.begin(*EVENTS[:2])
    exchange.reset()


@behaviour
async def cut_body(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.head("200 OK", "content-type: application/json", f"content-length: {len(ANSWER)}")
    await exchange.send(ANSWER[:50])
    exchange.cut()


# Nonsense.


@behaviour
async def html(exchange: Exchange) -> None:
    await exchange.whole(b"<html>\n\n<p>It works!</p>\n\n</html>", kind="text/html")


@behaviour
async def not_json(exchange: Exchange) -> None:
    await exchange.whole(b'{"choices": [')


@behaviour
async def not_utf8(exchange: Exchange) -> None:
    await exchange.whole(b'{"choices": "\xff"}')


@behaviour
async def nothing(exchange: Exchange) -> None:
    await exchange.whole(b"")


@behaviour
async def deep(exchange: Exchange) -> None:
    await exchange.whole(b"[" * 100_000)


@behaviour
async def not_http(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


@behaviour
async def not_chunks(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n")


@behaviour
async def not_an_event(exchange: Exchange) -> None:
    await exchange.stream(EVENTS[0], event("[1]"), DONE)


@behaviour
async def not_an_utf8_event(exchange: Exchange) -> None:
    await exchange.stream(EVENTS[0], b'data: {"choices": "\xff"}\n\n', DONE)


@behaviour
async def redirect(exchange: Exchange) -> None:
    await exchange.whole(b"", f"location: {exchange.fake.at('answer')}", status="307 Temporary Redirect")


@behaviour
async def huge_body(exchange: Exchange) -> None:
    """100 MB of faultless JSON."""
    await exchange.read()
    await exchange.head("200 OK", "content-type: application/json", "content-length: 100000000")
    await exchange.send(b"[1")
    for _ in range(100):
        await exchange.send(b" " * 999_999)
    await exchange.send(b" " * 97 + b"]")


@behaviour
async def huge_event(exchange: Exchange) -> None:
    await exchange.begin(EVENTS[0], b"data: ")
    for _ in range(20):
        await exchange.part(b" " * 1_000_000)


@behaviour
async def endless_event(exchange: Exchange) -> None:
    """100 MB of one event that never ends."""
    await exchange.begin(EVENTS[0], b"data: ")
    for _ in range(100):
        await exchange.part(b" " * 1_000_000)
    await exchange.hang()


@behaviour
async def bad_chunk(exchange: Exchange) -> None:
    await exchange.begin(EVENTS[0])
    await exchange.send(b"not a length\r\n")
    await exchange.hang()


@behaviour
async def huge_headers(exchange: Exchange) -> None:
    """1 MB of them."""
    await exchange.read()
    await exchange.send(b"HTTP/1.1 200 OK\r\nx-large: " + b"x" * 2**20 + b"\r\n\r\n")
    await exchange.hang()


@behaviour
async def slow_status(exchange: Exchange) -> None:
    """A byte at a time, and never all of them."""
    await exchange.read()
    for byte in b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" * 1000:
        await exchange.send(bytes([byte]))
        await asyncio.sleep(0.05)


@cache
def bomb() -> bytes:
    return gzip.compress(b"[" + b" " * 2**30 + b"]", 1)


@behaviour
async def gzip_bomb(exchange: Exchange) -> None:
    """A few MB that become 1 GB, though nobody asked for it packed."""
    await exchange.whole(bomb(), "content-encoding: gzip")


# Errors of its own.


@behaviour
async def too_many(exchange: Exchange) -> None:
    body = b'{"error": {"message": "Slow down.", "type": "rate_limit", "code": "rate_limited"}}'
    await exchange.whole(body, "retry-after: 7", status="429 Too Many Requests")


@behaviour
async def too_many_until(exchange: Exchange) -> None:
    header = "retry-after: Fri, 31 Dec 1999 23:59:59 GMT"
    await exchange.whole(b'{"error": "Slow down."}', header, status="429 Too Many Requests")


@behaviour
async def too_many_until_in_c(exchange: Exchange) -> None:
    """The old form of a date, from C's `asctime`, which names no time zone."""
    header = "retry-after: Fri Dec 31 23:59:59 1999"
    await exchange.whole(b'{"message": "Slow down."}', header, status="429 Too Many Requests")


@behaviour
async def broken(exchange: Exchange) -> None:
    body = b'{"detail": "The GPU is on fire."}'
    await exchange.whole(body, "retry-after: soon", status="500 Internal Server Error")


@behaviour
async def broken_when_woken(exchange: Exchange) -> None:
    await exchange.fake.wake.wait()
    await broken(exchange)


@behaviour
async def broken_by_number(exchange: Exchange) -> None:
    """As vLLM tells it."""
    body = b'{"error": {"message": "Too long.", "type": "BadRequestError", "param": null, "code": 400}}'
    await exchange.whole(body, status="400 Bad Request")


@behaviour
async def broken_in_html(exchange: Exchange) -> None:
    await exchange.whole(b"<h1>Oops</h1>" * 1000, status="500 Internal Server Error", kind="text/html")


@behaviour
async def broken_in_silence(exchange: Exchange) -> None:
    await exchange.whole(b"", status="503 Service Unavailable")


@behaviour
async def broken_twice(exchange: Exchange) -> None:
    """Not even the error arrives whole."""
    await exchange.read()
    await exchange.head("400 Bad Request", "content-type: application/json", "content-length: 1000")
    await exchange.send(b'{"message": "No such')
    exchange.cut()


@behaviour
async def error_in_stream(exchange: Exchange) -> None:
    await exchange.stream(*EVENTS[:2], event('{"error": {"message": "Out of memory.", "code": 507}}'), DONE)


@behaviour
async def error_in_stream_without_code(exchange: Exchange) -> None:
    await exchange.stream(*EVENTS[:2], event('{"error": "Out of memory."}'))


@behaviour
async def error_in_response(exchange: Exchange) -> None:
    await exchange.stream(RESPONSE_EVENTS[0], event('{"type": "error", "code": "x", "message": "Out of memory."}'))
