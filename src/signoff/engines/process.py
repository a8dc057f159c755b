"""A model's process: start it under a watchdog, wait until it is ready, follow its output and its end, stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from asyncio.subprocess import Process as Subprocess
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

from signoff.core.api_paths import UNKNOWN_PATH
from signoff.core.model import Model, ProcessLimits
from signoff.engines.jsonl import MAX_LINE_BYTES, JsonLinesClient
from signoff.engines.log import LineSplitter, ModelLog
from signoff.engines.watchdog import CANNOT_RUN

HOST = "127.0.0.1"
PORT_TRIES = 3
STOP_SECONDS = 5
_WATCHDOG = Path(__file__).with_name("watchdog.py")
_POLL_SECONDS = 0.05
_PROBE_SECONDS = 2
_DRAIN_SECONDS = 0.2
# Variables that a program needs to find its files, libraries and devices. None of them holds a secret.
_INHERITED = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME", "HF_HOME"),
        *("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    ]
)


@asynccontextmanager
async def start_jsonl(model: Model, log: ModelLog) -> AsyncGenerator[Process, None]:
    """Run the model's command as a program that speaks JSON lines, for the duration of the block.

    Its output to stderr goes to `log`. The process and its group have ended when the block has. Raises OSError if no
    process can be started.
    """
    async with AsyncExitStack() as stack:
        with ExitStack() as child_fds:
            output, stderr = await _pipe(stack, child_fds)
            answers, stdout = await _pipe(stack, child_fds, limit=MAX_LINE_BYTES)
            writer, stdin = await _pipe_to(stack, child_fds)
            arguments = ("--lines", f"{stdin},{stdout}", *_limits(model), *model.command)
            watchdog = await _start_watchdog(stderr, *arguments, port=None, pass_fds=(stdin, stdout))
        process = Process(watchdog, 0, output, log, model.limits)
        prefix = os.urandom(8).hex()  # unpredictable, so that no program writes it by accident
        process.lines = JsonLinesClient(model.name, answers, writer, prefix=prefix, disconnect=process.request_stop)
        async with _supervised(process):
            yield process


@asynccontextmanager
async def start_http(model: Model, log: ModelLog) -> AsyncGenerator[Process, None]:
    """Run the model's command as an HTTP server on a free port, for the duration of the block.

    `{port}` and `{host}` in the arguments are replaced; the port is also in the environment, as PORT and
    SIGNOFF_MODEL_PORT. Its output goes to `log`. The process and its group have ended when the block has. Raises
    OSError if no process can be started.
    """
    port = _free_port()
    command = [word.replace("{port}", str(port)).replace("{host}", HOST) for word in model.command]
    async with AsyncExitStack() as stack:
        with ExitStack() as child_fds:
            output, stdout = await _pipe(stack, child_fds)
            watchdog = await _start_watchdog(stdout, *_limits(model), *command, port=port)
        process = Process(watchdog, port, output, log, model.limits)
        async with _supervised(process):
            yield process


def _limits(model: Model) -> tuple[str, ...]:
    """Return the watchdog's arguments for the model's limits."""
    limits = (model.limits.memory_mb, model.limits.open_files, model.limits.nice)
    return ("--limits", ",".join("" if limit is None else str(limit) for limit in limits)) if any(limits) else ()


async def _start_watchdog(stdout: int, *arguments: str, port: int | None, pass_fds: tuple[int, ...] = ()) -> Subprocess:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", str(_WATCHDOG), *arguments),
        stdin=PIPE,
        stdout=stdout,
        stderr=STDOUT,
        env=_environment(port),
        pass_fds=pass_fds,
        start_new_session=True,
    )


@asynccontextmanager
async def _supervised(process: Process) -> AsyncGenerator[None, None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(process.supervise())
        try:
            yield
        finally:
            await process.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(port: int | None) -> dict[str, str]:
    environ = os.environ  # noqa: TID251 - environment of the machine, not settings of this server
    inherited = {name: value for name, value in environ.items() if name in _INHERITED or name.startswith("LC_")}
    if port is None:
        return inherited | {"PYTHONUNBUFFERED": "1"}  # otherwise Python buffers its answers
    return inherited | {"PORT": str(port), "SIGNOFF_MODEL_PORT": str(port)}


async def _pipe(our_fds: AsyncExitStack, child_fds: ExitStack, limit: int = 65536) -> tuple[asyncio.StreamReader, int]:
    """Return a reader and the descriptor that the model writes to; each is closed with its stack.

    uvloop would use a socket, which the model could not open as /dev/stderr.
    """
    read_fd, write_fd = os.pipe()
    child_fds.callback(os.close, write_fd)
    reader = asyncio.StreamReader(limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
    )
    our_fds.callback(transport.close)
    return reader, write_fd


async def _pipe_to(our_fds: AsyncExitStack, child_fds: ExitStack) -> tuple[asyncio.StreamWriter, int]:
    """Return a writer and the descriptor that the model reads from; each is closed with its stack."""
    read_fd, write_fd = os.pipe()
    child_fds.callback(os.close, read_fd)
    loop, unread = asyncio.get_running_loop(), asyncio.StreamReader()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(unread), os.fdopen(write_fd, "wb", buffering=0)
    )
    our_fds.callback(_abort, transport)
    return asyncio.StreamWriter(transport, protocol, None, loop), read_fd


def _abort(transport: asyncio.WriteTransport) -> None:
    """Close `transport` and discard what the model has not read."""
    if not transport.is_closing():
        transport.abort()


class Process:
    """A running model, and the watchdog that runs it."""

    def __init__(
        self, watchdog: Subprocess, port: int, output: asyncio.StreamReader, log: ModelLog, limits: ProcessLimits
    ) -> None:
        self.port = port
        """TCP port of an HTTP server; 0 for a program that speaks JSON lines."""
        self.ended = asyncio.Event()
        """Set once the process has ended and its log is complete."""
        self.lines: JsonLinesClient | None = None
        """Client of a program that speaks JSON lines; None for an HTTP server."""
        self._watchdog = watchdog
        self._output = output
        self._log = log
        self._limits = limits
        self._group: int | None = None

    async def supervise(self) -> None:
        """Follow the log, the answers and the end of the process; return once it has ended."""
        try:
            async with asyncio.TaskGroup() as group:
                readers = {group.create_task(self._read(LineSplitter(self._log)))}
                if self.lines is not None:
                    readers.add(group.create_task(self.lines.read_responses()))
                status = await self._watchdog.wait()
                if status < 0:
                    self._kill()  # the watchdog itself was killed, so the model is still running
                # The last output may still be in the pipe, but a descendant outside the group can hold that open.
                await asyncio.wait(readers, timeout=_DRAIN_SECONDS)
                for reader in readers:
                    reader.cancel()
        finally:
            self.ended.set()
            if self.lines is not None:
                self.lines.close_crashed(self._exit_message())

    def _exit_message(self) -> str:
        """Return how the process ended, as the rest of a sentence that begins with the model's name.

        The last lines of its log may contain other users' data, so they are included only if it never ran.
        """
        status = self._watchdog.returncode
        if status == CANNOT_RUN:
            return self._with_tail("could not be run")
        limit = "" if self._limits.memory_mb is None else f" (its memory limit is {self._limits.memory_mb} MiB)"
        return f"ended with status {status} before it answered{limit}. See its log for details."

    async def _read(self, splitter: LineSplitter) -> None:
        try:
            first = await self._output.readline()
            if first.strip().isdigit():
                self._group = int(first)
            else:
                splitter.feed(first)  # no process id: the error of a watchdog that could not start
            while data := await self._output.read(65536):
                splitter.feed(data)
        finally:
            splitter.end()

    async def startup_error(self, start_seconds: float) -> str | None:
        """Wait up to `start_seconds` until the model is ready.

        Return None when it is; else the reason and the last lines of the log, as the rest of a sentence that begins
        with the model's name.
        """
        try:
            async with asyncio.timeout(start_seconds):
                while not self.ended.is_set():
                    if await self._is_healthy():
                        return None
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return self._with_tail(f"was not ready within {start_seconds:g} s")
        return self._with_tail(f"ended with status {self._watchdog.returncode} during start-up")

    async def _is_healthy(self) -> bool:
        """Return True if the model can take requests.

        An HTTP server is ready if `/health` returns 200; if it has no `/health`, once it answers any HTTP request. A
        program that speaks JSON lines is ready as soon as it runs: requests wait in its stdin while it loads.
        """
        if self.lines is not None:
            return self._group is not None
        status = await _get(self.port, "/health")
        if status in UNKNOWN_PATH:
            return await _get(self.port, "/v1/models") is not None
        return status == 200

    def is_running(self) -> bool:
        """Return True if the model itself still runs: the kernel reports its end before `ended` is set."""
        if self._group is None or self.ended.is_set() or (self.lines is not None and self.lines.is_closed):
            return False
        try:
            os.kill(self._group, 0)
        except OSError as error:
            return isinstance(error, PermissionError)
        return True

    def _with_tail(self, reason: str) -> str:
        tail = self._log.tail()
        return f"{reason}. Its last lines:\n{tail}" if tail else f"{reason}, and wrote nothing."

    def request_stop(self) -> None:
        """Ask the watchdog to end the model, by closing the watchdog's stdin."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()

    async def stop(self) -> None:
        """End the process and its group, within STOP_SECONDS."""
        self.request_stop()
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
            self._watchdog.kill()
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)


async def _get(port: int, path: str) -> int | None:
    """Return the status of an HTTP GET, or None if there is no valid answer."""
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


def is_port_in_use(port: int) -> bool:
    """Return True if another process has taken `port` since it was chosen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
