"""A model server that answers `OpenAI reply for <prompt>`, after a while if it is told to, and keeps a journal."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPLY = "OpenAI reply for "


class Replies:
    """What the server was asked, in the order in which it answered. `slow` are prompts that take `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.url = ""
        self.seconds = seconds
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.keys: list[str | None] = []
        """What each request was authorized with."""
        self.refused: dict[str, int] = {}
        """Prompts that are answered with an error of that status."""
        self.gate = threading.Event()
        self.gate.set()
        """Nothing is answered while it is closed."""

    def times(self) -> Counter[str]:
        """How often each prompt was asked."""
        return Counter(self.asked)


@contextlib.contextmanager
def replying(seconds: float = 0) -> Iterator[Replies]:
    """A server that runs while the block does."""
    replies = Replies(seconds)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = body["messages"][-1]["content"]
            replies.asked.append(prompt)
            replies.keys.append(self.headers["authorization"])
            time.sleep(replies.seconds)
            replies.gate.wait(60)
            status = replies.refused.get(prompt, 200)
            with contextlib.suppress(OSError):
                self.tell(status, _answer(prompt) if status == 200 else _refusal(status))
            replies.answered.append(prompt)

        def tell(self, status: int, told: dict[str, Any]) -> None:
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Who was killed in the middle of a request has nothing to be told."""

    with Server(("127.0.0.1", 0), Handler) as server:
        replies.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield replies
        finally:
            replies.gate.set()
            server.shutdown()


def _answer(prompt: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": REPLY + prompt}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def _refusal(status: int) -> dict[str, Any]:
    return {"error": {"message": "No, not that.", "type": "x", "param": None, "code": str(status)}}
