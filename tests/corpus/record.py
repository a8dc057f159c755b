"""Recording of the local model's answers: `python tests/corpus/record.py` rewrites the files in `llama.cpp/`.

Each exchange is two files: `NAME.json`, the path and the body of the request, and `NAME.http`, every byte that was read
from the socket.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from signoff.engines.llama import local_command, local_weights

FOLDER = Path(__file__).parent / "llama.cpp"
START_SECONDS = 120
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
QUESTION = {
    "messages": [{"role": "user", "content": "Name three colours, and a café."}],
    "max_tokens": 24,
    "temperature": 0,
}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [TOOL],
    "tool_choice": "required",
    "max_tokens": 64,
    "temperature": 0,
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, QUESTION),
    "chat-streamed": (CHAT, QUESTION | {"stream": True}),
    "chat-streamed-with-usage": (CHAT, QUESTION | USAGE),
    "chat-logprobs": (CHAT, QUESTION | {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}),
    "chat-logprobs-streamed": (CHAT, QUESTION | {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "stream": True}),
    "chat-tools": (CHAT, CALL),
    "chat-tools-streamed": (CHAT, CALL | USAGE),
    "chat-two-choices": (CHAT, QUESTION | {"n": 2, "max_tokens": 6}),
    "completion": (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}),
    "completion-streamed": (COMPLETIONS, {"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "stream": True}),
    "response": (RESPONSES, {"input": "Say hello.", "max_output_tokens": 12, "temperature": 0}),
    "response-streamed": (RESPONSES, {"input": "Say hi.", "max_output_tokens": 12, "temperature": 0, "stream": True}),
    "error-no-messages": (CHAT, {"messages": "none"}),
    "error-too-long": (CHAT, {"messages": [{"role": "user", "content": "many words " * 5000}], "max_tokens": 4}),
    "error-no-embeddings": ("/v1/embeddings", {"input": "hello"}),
    "error-no-such-endpoint": ("/v1/moderations", {"input": "hello"}),
}


def main() -> None:
    """Start the model, send it all requests, and write its responses to files."""
    weights = local_weights()
    assert weights is not None, "the local model is not installed"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([word.replace("{port}", str(port)) for word in local_command(weights)]) as model:
        try:
            wait_for(port)
            for name, (path, more) in REQUESTS.items():
                body = {"model": "local"} | more
                (FOLDER / f"{name}.json").write_text(json.dumps({"path": path, "body": body}) + "\n")
                (FOLDER / f"{name}.http").write_bytes(exchange(port, path, json.dumps(body).encode()))
                sys.stdout.write(f"{name}\n")
        finally:
            model.terminate()


def wait_for(port: int) -> None:
    """Wait until the model has loaded."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if exchange(port, "/health", None).startswith(b"HTTP/1.1 200"):
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "the model does not start"
        time.sleep(0.2)


def exchange(port: int, path: str, body: bytes | None) -> bytes:
    """Send one request, a GET if it has no body, and return all bytes of the response."""
    start = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head = start + f"Content-Type: application/json\r\nContent-Length: {len(body or b'')}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(head.encode() + (body or b""))
        return b"".join(iter(lambda: connection.recv(2**16), b""))


if __name__ == "__main__":
    main()
