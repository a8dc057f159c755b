"""A model's process: started under its warden on a free port, watched for its health and its end, and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from asyncio.subprocess import Process as Subprocess
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
PORT_TRIES = 3
STOP_SECONDS = 5
MAX_LINES = 2000
MAX_LINE_BYTES = 8192
TAIL_LINES = 10
_WARDEN = Path(__file__).with_name("warden.py")
_POLL_SECONDS = 0.05
_PROBE_SECONDS = 2
_DRAIN_SECONDS = 0.2
# What a program needs to find its files, its libraries and its devices. Secrets live under other names.
_INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
    ]
)


class Log:
    """The last lines that a model wrote, each with the microseconds since 1970 that `clock` told."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lines = deque[tuple[int, str]](maxlen=MAX_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what came; a line that is too long goes on as the next one."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        while len(self._rest) >= MAX_LINE_BYTES:
            self._add(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]

    def end(self) -> None:
        """Take the last line as it is: no more will come from this process."""
        if self._rest:
            self._add(self._rest)
        self._rest = b""

    def _add(self, line: bytes) -> None:
        at = self._clock()
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            piece = line[start : start + MAX_LINE_BYTES]
            self._lines.append((at, piece.decode(errors="replace").rstrip("\r")))

    def lines(self) -> list[tuple[int, str]]:
        """All lines that are kept, oldest first."""
        return list(self._lines)

    def tail(self) -> str:
        """The last lines as text."""
        return "\n".join(text for _, text in list(self._lines)[-TAIL_LINES:])


@asynccontextmanager
async def running(command: Sequence[str], log: Log) -> AsyncGenerator[Process, None]:
    """A process that runs `command` with a port of its own; it and its group have ended when the block has.

    `{port}` and `{host}` in the arguments are filled in; the port is also in the environment, as PORT and
    SIGNOFF_MODEL_PORT. What it writes goes to `log`. Raises OSError where no process can be started at all.
    """
    port = _free_port()
    filled = [word.replace("{port}", str(port)).replace("{host}", HOST) for word in command]
    warden = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", str(_WARDEN), *filled),
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
        env=_environment(port),
        start_new_session=True,
    )
    process = Process(warden, port, log)
    async with asyncio.TaskGroup() as group:
        group.create_task(process.follow())
        try:
            yield process
        finally:
            await process.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith("LC_")}
    return inherited | {"PORT": str(port), "SIGNOFF_MODEL_PORT": str(port)}


class Process:
    """One running model; `ended` is set once it has ended, its log complete."""

    def __init__(self, warden: Subprocess, port: int, log: Log) -> None:
        self.port = port
        self.ended = asyncio.Event()
        self._warden = warden
        self._group: int | None = None
        self._log = log

    async def follow(self) -> None:
        """Keep its log, and notice its end."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            status = await self._warden.wait()
            if status < 0:
                self._kill()  # the warden itself was killed, and could end nothing
            # Its last words are in the pipe; but a descendant that left the group may hold that open for ever.
            await asyncio.wait({reading}, timeout=_DRAIN_SECONDS)
            reading.cancel()
        self._log.end()
        self.ended.set()

    async def _read(self) -> None:
        stdout = self._warden.stdout
        if stdout is None:
            return
        first = await stdout.readline()
        if first.strip().isdigit():
            self._group = int(first)
        else:
            self._log.feed(first)  # the warden could not do its work, and says why
        while data := await stdout.read(65536):
            self._log.feed(data)

    async def complaint(self, start_seconds: float) -> str | None:
        """Wait until it answers; else tell why it does not, with the last lines of its log."""
        try:
            async with asyncio.timeout(start_seconds):
                while not await self._is_healthy():
                    if self.ended.is_set():
                        return self._with_tail(f"ended with status {self._warden.returncode} as it started")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return self._with_tail(f"was not ready within {start_seconds:g} s")
        return None

    async def _is_healthy(self) -> bool:
        """Whether /health says so; a server that knows no /health is ready when it speaks HTTP at all."""
        status = await _get(self.port, "/health")
        if status == 404:
            return await _get(self.port, "/v1/models") is not None
        return status == 200

    def _with_tail(self, why: str) -> str:
        tail = self._log.tail()
        return f"{why}. Its last lines:\n{tail}" if tail else f"{why}, and wrote nothing."

    async def stop(self) -> None:
        """End it and its group; takes at most STOP_SECONDS."""
        if self._warden.stdin is not None:
            self._warden.stdin.close()  # which is the warden's cue
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.ended.wait()
        except TimeoutError:
            pass
        finally:
            if not self.ended.is_set():
                self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._warden.kill()
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)


async def _get(port: int, path: str) -> int | None:
    """The status of an HTTP answer, or None when there is none."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
                version, status, *_ = (await reader.readline()).split()
                return int(status) if version.startswith(b"HTTP/") else None
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError):
        return None


def is_taken(port: int) -> bool:
    """Whether somebody listens on `port`: a port that was free may be gone when the model wants it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
