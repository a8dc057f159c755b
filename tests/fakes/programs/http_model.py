"""A small HTTP server that acts as a model, correct or faulty as its options and requests say."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", help="a file that gets a line with each start's process ids")
    parser.add_argument("--words", default="", help="what it writes as it starts")
    parser.add_argument("--crash", type=int, help="end with this status at the start")
    parser.add_argument("--broken", help="crash at the start while this file exists")
    parser.add_argument("--robbed", help="while this file exists, somebody else has the port first")
    parser.add_argument("--slow", type=float, default=0, help="seconds before it listens")
    parser.add_argument("--grandchild", action="store_true")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM, grandchild too")
    parser.add_argument("--deaf", action="store_true", help="never answer /health")
    parser.add_argument("--health", type=int, default=200, help="status of the answer to GET")
    options = parser.parse_args()
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids = [os.getpid()]
    robbed = options.robbed and os.path.exists(options.robbed)  # noqa: PTH110 - it starts faster without pathlib
    if robbed:
        os.unlink(options.robbed)  # noqa: PTH108 - the same
        pids.append(thief(options.port))
    if options.grandchild:
        pids.append(subprocess.Popen(["sleep", "600"]).pid)
    if options.journal:
        with open(options.journal, "a", encoding="ascii") as journal:  # noqa: PTH123 - the same
            journal.write(" ".join(map(str, pids)) + "\n")
    say(options.words)
    if robbed or options.crash is not None or (options.broken and os.path.exists(options.broken)):  # noqa: PTH110 - the same
        sys.exit(options.crash or 1)
    time.sleep(options.slow)
    Server(("127.0.0.1", options.port), handler(deaf=options.deaf, health=options.health)).serve_forever()


def thief(port: int) -> int:
    """Start a process outside the group that keeps the port and the pipes open; return its id."""
    with socket.create_server(("127.0.0.1", port)):
        if pid := os.fork():
            return pid
        os.setsid()
        time.sleep(600)
        os._exit(0)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Server(ThreadingHTTPServer):
    """A server that answers requests in threads, and does not wait for them when it ends."""

    daemon_threads = True
    request_queue_size = 128


def handler(*, deaf: bool, health: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if deaf:
                time.sleep(600)
            self.reply(health, b"{}")

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            say(f"asked {json.dumps(request)}")
            time.sleep(request.get("seconds", 0))
            if request.get("crash"):
                os._exit(3)
            report = {"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ)}
            message = {"role": "assistant", "content": ""}
            self.reply(200, json.dumps(report | {"choices": [{"index": 0, "message": message}]}).encode())

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler


if __name__ == "__main__":
    main()
