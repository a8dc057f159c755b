"""CPU time and rate of waiting calls, of several checkouts in one alternating run.

Run as `python bench/calls.py ROOT… [--rounds N] [--seconds S] [--connections C] [--out FILE]`. Each ROOT is a checkout
of which `make setup` has run. A server of each checkout runs alone on one core, before an upstream that answers at
once; this program and the upstream run on another core, if there are two. The rounds alternate between the checkouts,
because only figures of one run can be compared. CPU time is that of all threads of the server.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from result import Result

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """Upstream that answers every request with RESPONSE, as soon as its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport, self._data = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._data += data
        while (size := message_size(self._data)) is not None and size <= len(self._data):
            self._data = self._data[size:]
            self._transport.write(RESPONSE)


class Client(asyncio.Protocol):
    """Connection that sends one request after another, until the time is over."""

    def __init__(self, request: "Requests") -> None:
        self._requests = request
        self._data = b""
        self._sent_at = 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count a response that is complete, and send the next request."""
        self._data += data
        size = message_size(self._data)
        if size is None or size > len(self._data):
            return
        if not self._data.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"The server answered: {self._data[:500]!r}")
        self._data = self._data[size:]
        self._requests.latencies.append(time.perf_counter() - self._sent_at)
        self._send()

    def _send(self) -> None:
        if time.perf_counter() >= self._requests.ends_at:
            self._transport.close()
            self.ended.set_result(None)
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests.next())


class Requests:
    """Requests of one round: all equal, or each with a prompt of its own."""

    def __init__(self, port: int, token: str, *, equal: bool, ends_at: float) -> None:
        self.latencies = list[float]()
        self.ends_at = ends_at
        self._equal = equal
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
        )
        self._count = 0
        self._salt = time.time_ns()

    def next(self) -> bytes:
        """Return the next request."""
        self._count += 1
        prompt = "the same" if self._equal else f"{self._salt} {self._count}"
        message = {"role": "user", "content": prompt + " " + "word " * 20}
        body = json.dumps({"model": "bench", "temperature": 0, "messages": [message]})
        return f"{self._head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


class Server:
    """Server of one checkout."""

    def __init__(
        self,
        root: Path,
        cores: set[int],
        upstream_port: int,
        *,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        """Start the server, in `folder` or an empty one; give the `token` that an earlier start there printed."""
        self.name = root.name
        self._folder = tempfile.TemporaryDirectory(prefix="signoff-bench-")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
        self._process = subprocess.Popen(
            [root / ".venv/bin/signoff", "serve", "--port", "0"],
            cwd=folder or self._folder.name,
            env=environment | dict(settings or {}),
            stdout=subprocess.PIPE,
        )
        os.sched_setaffinity(self._process.pid, cores)
        pattern = rb"http://127\.0\.0\.1:(\d+)\n" + (rb"[\s\S]*Token: (\S+)" if token is None else b"")
        text = b""
        while not (match := re.search(pattern, text)):
            text += os.read(self._process.stdout.fileno(), 65536)
        self.port, self.token = int(match[1]), token or match[2].decode()
        if token is None:
            self._post(
                "/api/models", {"name": "bench", "kind": "openai", "url": f"http://127.0.0.1:{upstream_port}/v1"}
            )

    def cpu_seconds(self) -> float:
        """Return the CPU time that all threads of the server have used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def pause(self) -> None:
        """Stop the process until `resume`, so that it does not disturb the other servers."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process run."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.resume()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _post(self, path: str, payload: object) -> None:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        url, body = f"http://127.0.0.1:{self.port}{path}", json.dumps(payload).encode()
        for _ in range(100):
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).read()
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} does not answer.")


def message_size(data: bytes) -> int | None:
    """Return the size of the first HTTP message in `data`; None if its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    match = LENGTH.search(data, 0, end + 2)
    return end + 4 + (int(match[1]) if match else 0)


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    """Run the upstream in a process of its own, and yield its port."""
    process = subprocess.Popen([sys.executable, __file__, "--upstream"], stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


async def serve_upstream() -> None:
    """Run the upstream, and print its port."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def run_round(server: Server, *, equal: bool, seconds: float, connections: int) -> tuple[float, float, float]:
    """Return the requests per second, the CPU time per request in microseconds, and the median latency in ms."""
    server.resume()
    cpu, began = server.cpu_seconds(), time.perf_counter()
    requests = Requests(server.port, server.token, equal=equal, ends_at=began + seconds)
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: Client(requests), "127.0.0.1", server.port) for _ in range(connections)
    ]
    await asyncio.gather(*(client.ended for _, client in pairs))
    elapsed = time.perf_counter() - began
    await asyncio.sleep(0.2)  # the log is written behind the last answers
    used = server.cpu_seconds() - cpu
    server.pause()
    count = len(requests.latencies)
    return count / elapsed, used / count * 1e6, statistics.median(requests.latencies) * 1e3


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with upstream() as port, contextlib.ExitStack() as stack:
        servers = [Server(root.resolve(), {cores[0]}, port) for root in options.roots]
        for server in servers:
            stack.callback(server.close)
            server.pause()
        figures: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for number in range(options.rounds + 1):
            for kind in ("miss", "hit"):
                for server in servers:
                    figure = asyncio.run(
                        run_round(server, equal=kind == "hit", seconds=options.seconds, connections=options.connections)
                    )
                    if number:  # the first round warms up
                        figures.setdefault((kind, server.name), []).append(figure)
        result = Result("call", "checkout", "CPU µs (min–max)", "of the first checkout", "requests/s", "p50 ms")
        firsts = dict[str, float]()
        for (kind, name), rounds in figures.items():
            rate, cpu, latency = (statistics.median(values) for values in zip(*rounds, strict=True))
            cpus = [each for _, each, _ in rounds]
            share = cpu / firsts.setdefault(kind, cpu)
            spread = f"{cpu:.0f} ({min(cpus):.0f}–{max(cpus):.0f})"
            result.add(kind, name, spread, f"{share:.2f}", f"{rate:.0f}", f"{latency:.1f}")
        result.save(options.out)


if __name__ == "__main__":
    asyncio.run(serve_upstream()) if sys.argv[1:] == ["--upstream"] else main()
