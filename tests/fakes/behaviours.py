"""Behaviours of a fake upstream by name: correct answers, silence, early ends, invalid data and errors."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from fakes.http_server import (
    RecordedRequest,
    Reply,
    chunk,
    chunked,
    json_reply,
    pause,
    raw,
    sse_event,
    wait_for_wake,
    whole,
)
from fakes.remembering import keep_history
from fakes.scoring import give_logprobs, moderate

CORPUS = Path(__file__).parents[1] / "corpus"
# Odd spaces, escapes and numbers show whether somebody decodes and encodes again.
ANSWER = (
    b'{ "id":"chatcmpl-1",\t"object": "chat.completion", "created":1.70e9, "model": "fake", "choices":[ {"index":0,'
    b' "message":{"role":"assistant","content":"caf\\u00e9 caf\xc3\xa9"}, "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens":3, "completion_tokens":2,"total_tokens":5} }\n'
)


def _delta(content: str) -> str:
    return (
        f'{{"id": "c1", "object":"chat.completion.chunk","choices":[ {{"index":0,"delta":{{"content":"{content}"}}}}]}}'
    )


_DATA = [*map(_delta, ("one", " two", ' caf\\u00e9 \\"error\\"', " caf\u00e9")), "[DONE]"]
EVENTS = [sse_event(data) for data in _DATA]
WHOLE_STREAM = b"".join(EVENTS)
FINISHED_EVENTS = [
    EVENTS[0],
    sse_event(
        '{"id": "c1", "object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    ),
]
CRLF_EVENTS = [sse_event(data, newline="\r\n") for data in _DATA]
COMMENTED_EVENTS = [b": hello\n\n", EVENTS[0], b"event: chunk\nid: 7\n" + EVENTS[1], b":\n\n", *EVENTS[2:]]
RESPONSE_EVENTS = [
    (
        b"event: response.created\n"
        b'data: {"type": "response.created", "sequence_number":0,"response":{"error":null,"output":[]}}\n\n'
    ),
    b'event: response.completed\ndata: {"type": "response.completed","response":{}}\n\n',
]
MESSAGE = [
    b'event: message_start\ndata: {"type": "message_start", "message": {"id": "msg_1", "error": null}}\n\n',
    b'event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"text": "caf\\u00e9"}}\n\n',
    b'event: message_delta\ndata: {"type": "message_delta", "usage": {"output_tokens": 2}}\n\n',
    b"data: 3\n\n",
    b"data: no JSON \xff\n\n",
    b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
]
ROWS = b'{"a": 1}\n{"a": 2}\n'
SOUND = bytes(range(256)) * 40
SPOKEN = [
    sse_event('{ "type":"speech.audio.delta","audio":"AAA"}'),
    sse_event('{"type":"speech.audio.done", "audio":"BBB"}'),
]
KEPT_USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
_MB_OF_SPACES = b" " * 1_000_000


async def _mirror(request: RecordedRequest) -> Reply:
    """Answer with the request's body."""
    return whole(request.body)


async def _recorded(request: RecordedRequest) -> Reply:
    """Answer with the exchange of the corpus that the rest of the path names."""
    name = "/".join(request.path.split("/")[2:4])
    return raw((CORPUS / f"{name}.http").read_bytes())


async def _no_edits(request: RecordedRequest) -> Reply:
    """Serve chat completions only."""
    if request.path.endswith("/v1/chat/completions"):
        return _ANSWER
    return whole(b'{"error": {"message": "Not here."}}', status=404)


async def _keep(request: RecordedRequest) -> Reply:
    """Create responses; answer every other request with its own data.

    The id of a response has the number of its request. A stream whose request says "and hang" hangs after its first
    event.
    """
    if (request.method, request.path) != ("POST", "/keep/v1/responses"):
        name = request.path.split("?")[0].split("/")[-1]
        return json_reply({"id": name, "was": f"{request.method} {request.path}"})
    number = request.number
    text = {"type": "output_text", "text": "kept", "annotations": []}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    fields = {"id": f"resp_{number}Kept", "object": "response", "status": "completed", "output": [message]}
    response = fields | {"usage": KEPT_USAGE}
    if not request.json().get("stream"):
        return json_reply(response)
    kinds = ("response.created", "response.completed")
    events = [sse_event({"type": kind, "response": response}, name=kind) for kind in kinds]
    return chunked(events[0], end="hang") if b"and hang" in request.body else chunked(*events)


async def _redirect(request: RecordedRequest) -> Reply:
    return whole(b"", status=307, headers={"location": f"http://{request.headers['host']}/answer"})


async def _leave_when_reused(request: RecordedRequest) -> Reply:
    """Act as a server that closes an idle connection while the next request is on its way."""
    return _ANSWER if request.is_first else _LEAVE


async def _leave_when_reused_then_always(request: RecordedRequest) -> Reply:
    return _ANSWER if request.connection == 1 and request.is_first else _LEAVE


@cache
def bomb() -> bytes:
    """Return a few MB of gzip that become 512 MB."""
    return gzip.compress(b"[" + b" " * 2**29 + b"]", 1)


async def _gzip_bomb(_: RecordedRequest) -> Reply:
    """Send a compressed body that the request did not ask for."""
    return whole(bomb(), headers={"content-encoding": "gzip"})


def _too_many(body: bytes, retry_after: str) -> Reply:
    return whole(body, status=429, headers={"retry-after": retry_after})


_ANSWER = whole(ANSWER, headers={"set-cookie": "a=b"})
_LEAVE = raw(end="close")
_BROKEN = whole(b'{"detail": "The GPU is on fire."}', status=500, headers={"retry-after": "soon"})
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

BEHAVIOURS: dict[str, Reply | Callable[[RecordedRequest], Awaitable[Reply]]] = {
    # Sound answers.
    "answer": _ANSWER,
    "answer-when-woken": whole(ANSWER, before=(wait_for_wake,)),
    "mirror": _mirror,
    "recorded": _recorded,
    "no-edits": _no_edits,
    "keep": _keep,
    "remember": keep_history,
    "logprobs": give_logprobs,
    "moderate": moderate,
    "gone": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "rows": whole(ROWS, content_type="application/x-ndjson"),
    "speech": whole(SOUND, content_type="audio/mpeg"),
    "transcript": whole(b'{ "text":"hello" }'),
    # Sound streams.
    "stream": chunked(*EVENTS),
    "stream-when-woken": chunked(EVENTS[0], wait_for_wake, b"".join(EVENTS[1:])),
    "stream-of-crlf": chunked(*CRLF_EVENTS),
    "stream-of-bytes": chunked(*(bytes([byte]) for byte in b"".join(CRLF_EVENTS))),
    "stream-at-once": chunked(WHOLE_STREAM),
    "stream-with-comments": chunked(*COMMENTED_EVENTS),
    "stream-as-text": chunked(*EVENTS, content_type="text/plain; charset=utf-8"),
    "stream-until-close": Reply(
        steps=(WHOLE_STREAM,), content_type="text/event-stream", framing="until-close", end="close"
    ),
    "stream-after-a-thought": chunked(pause(0.2), WHOLE_STREAM),  # the headers come at once
    "stream-of-a-response": chunked(*RESPONSE_EVENTS),
    "stream-without-last-blank-line": chunked(*EVENTS[:-1], b"data: [DONE]\n"),
    "stream-without-mark": chunked(*FINISHED_EVENTS),
    "stream-that-lingers": chunked(*EVENTS, end="hang"),
    "message": chunked(*MESSAGE),  # Anthropic's streams have no `[DONE]`
    "message-without-last-blank-line": chunked(*MESSAGE[:-1], MESSAGE[-1][:-1]),
    "spoken": chunked(*SPOKEN),
    # Silence. `deaf` reads no body until it is woken; the pause lets every buffer fill.
    "deaf": raw(pause(0.2), wait_for_wake, reads_body=False, end="hang"),
    "hang-before-headers": raw(end="hang"),
    "slow-headers": raw(b"HTTP/1.1 200 OK\r\n", repeat=pause(0.01, b"x: y\r\n")),
    "slow-status": raw(*(pause(0.05, bytes([byte])) for byte in b"HTTP/1.1 200 OK\r\nx: "), repeat=pause(0.05, b"x")),
    "hang-after-headers": chunked(end="hang"),
    "hang-mid-stream": chunked(EVENTS[0], end="hang"),
    # What is sent fits no socket's buffer: at `stuck` the client has begun to read it.
    "hang-mid-body": Reply(steps=(b" " * 2**20,) * 32, length=48 * 2**20, end="hang"),
    "trickle": chunked(repeat=pause(0.01, b": still here\n\n")),
    "flood": chunked(repeat=b":" + b" " * 50_000 + b"\n\n"),
    # Ends that come too soon.
    "leave": _LEAVE,
    "leave-when-reused": _leave_when_reused,
    "leave-when-reused-then-always": _leave_when_reused_then_always,
    "cut-stream": chunked(*EVENTS[:2], end="close"),
    "cut-event": chunked(*EVENTS[:2], EVENTS[2][:20], end="close"),
    "end-stream-early": chunked(*EVENTS[:2]),
    "reset-stream": chunked(*EVENTS[:2], end="reset"),
    "cut-body": whole(ANSWER[:50], length=len(ANSWER), end="close"),
    "numbered": chunked(sse_event('{"number": 1}'), EVENTS[-1]),
    "comments-and-cut": chunked(b": processing\n\n", end="close"),
    # Nonsense.
    "html": whole(b"<html>\n\n<p>It works!</p>\n\n</html>", content_type="text/html"),
    "not-json": whole(b'{"choices": ['),
    "nothing": whole(b""),
    "deep": whole(b"[" * 100_000),
    "not-http": raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "not-chunks": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n"),
    "not-an-event": chunked(EVENTS[0], sse_event("[1]"), EVENTS[-1]),
    "redirect": _redirect,
    # 100 MB of faultless JSON.
    "huge-body": Reply(steps=(b"[1", *(b" " * 999_999,) * 100, b" " * 97 + b"]"), framing="length"),
    "huge-event": chunked(EVENTS[0], b"data: ", *(_MB_OF_SPACES,) * 20),
    "endless-event": chunked(EVENTS[0], b"data: ", *(_MB_OF_SPACES,) * 100, end="hang"),
    "bad-chunk": raw(_CHUNKED_HEAD, chunk(EVENTS[0]), b"not a length\r\n", end="hang"),
    "huge-headers": raw(b"HTTP/1.1 200 OK\r\nx-large: " + b"x" * 2**20 + b"\r\n\r\n", end="hang"),
    "gzip-bomb": _gzip_bomb,
    # Errors of its own. A date may have the old form of C's `asctime`; a code may be a number, as vLLM sends it.
    "too-many": _too_many(b'{"error": {"message": "Slow down.", "type": "rate_limit", "code": "rate_limited"}}', "7"),
    "too-many-until": _too_many(b'{"error": "Slow down."}', "Fri, 31 Dec 1999 23:59:59 GMT"),
    "too-many-until-in-c": _too_many(b'{"message": "Slow down."}', "Fri Dec 31 23:59:59 1999"),
    "broken": _BROKEN,
    "broken-when-woken": replace(_BROKEN, before=(wait_for_wake,)),
    "broken-by-number": whole(
        b'{"error": {"message": "Too long.", "type": "BadRequestError", "param": null, "code": 400}}', status=400
    ),
    "broken-in-html": whole(b"<h1>Oops</h1>" * 1000, status=500, content_type="text/html"),
    "broken-in-silence": whole(b"", status=503),
    "broken-twice": whole(b'{"message": "No such', status=400, length=1000, end="close"),
    "error-inside": whole(b'{"error": {"message": "Overloaded.", "code": 529}}'),
    "role-and-error": chunked(
        sse_event('{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}'),
        sse_event('{"error": {"message": "Overloaded.", "code": 529}}'),
    ),
    "error-in-stream": chunked(
        *EVENTS[:2], sse_event('{"error": {"message": "Out of memory.", "code": 507}}'), EVENTS[-1]
    ),
    "error-in-stream-without-code": chunked(*EVENTS[:2], sse_event('{"error": "Out of memory."}')),
    "error-in-response": chunked(
        RESPONSE_EVENTS[0], sse_event('{"type": "error", "code": "x", "message": "Out of memory."}')
    ),
}
