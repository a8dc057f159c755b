"""A model's process: started under its warden on a free port, watched for its health and its end, and stopped."""

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


@asynccontextmanager
async def start_jsonl(model: Model, log: ModelLog) -> AsyncGenerator[Process, None]:
    """A process that runs the model's command and speaks lines; it and its group have ended when the block has.

    What it writes to stderr goes to `log`. Raises OSError where no process can be started at all.
    """
    async with AsyncExitStack() as stack:
        with ExitStack() as its:
            output, its_stderr = await _pipe(stack, its)
            answers, its_stdout = await _pipe(stack, its, limit=MAX_LINE_BYTES)
            writer, its_stdin = await _pipe_to(stack, its)
            told = ("--lines", f"{its_stdin},{its_stdout}", *_limits(model), *model.command)
            warden = await _start_watchdog(its_stderr, *told, port=None, pass_fds=(its_stdin, its_stdout))
        process = Process(warden, 0, output, log, model.limits)
        prefix = os.urandom(8).hex()  # no program writes it by chance
        process.lines = JsonLinesClient(model.name, answers, writer, prefix=prefix, hang_up=process.hang_up)
        async with _followed(process):
            yield process


@asynccontextmanager
async def start_http(model: Model, log: ModelLog) -> AsyncGenerator[Process, None]:
    """A process that runs the model's command with a port of its own; it and its group have ended when the block has.

    `{port}` and `{host}` in the arguments are filled in; the port is also in the environment, as PORT and
    SIGNOFF_MODEL_PORT. What it writes goes to `log`. Raises OSError where no process can be started at all.
    """
    port = _free_port()
    filled = [word.replace("{port}", str(port)).replace("{host}", HOST) for word in model.command]
    async with AsyncExitStack() as stack:
        with ExitStack() as its:
            output, to_us = await _pipe(stack, its)
            warden = await _start_watchdog(to_us, *_limits(model), *filled, port=port)
        process = Process(warden, port, output, log, model.limits)
        async with _followed(process):
            yield process


def _limits(model: Model) -> tuple[str, ...]:
    """What the warden is told of them."""
    limits = (model.limits.memory_mb, model.limits.open_files, model.limits.nice)
    return ("--limits", ",".join("" if limit is None else str(limit) for limit in limits)) if any(limits) else ()


def _abort(transport: asyncio.WriteTransport) -> None:
    """What a model has not read is never written out."""
    if not transport.is_closing():
        transport.abort()


async def _start_watchdog(to_us: int, *words: str, port: int | None, pass_fds: tuple[int, ...] = ()) -> Subprocess:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", str(_WATCHDOG), *words),
        stdin=PIPE,
        stdout=to_us,
        stderr=STDOUT,
        env=_environment(port),
        pass_fds=pass_fds,
        start_new_session=True,
    )


@asynccontextmanager
async def _followed(process: Process) -> AsyncGenerator[None, None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(process.follow())
        try:
            yield
        finally:
            await process.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(port: int | None) -> dict[str, str]:
    ours = os.environ  # noqa: TID251 - no setting of ours: what the machine tells every program
    inherited = {name: value for name, value in ours.items() if name in _INHERITED or name.startswith("LC_")}
    if port is None:
        return inherited | {"PYTHONUNBUFFERED": "1"}  # else its answers wait in a buffer
    return inherited | {"PORT": str(port), "SIGNOFF_MODEL_PORT": str(port)}


async def _pipe(ours: AsyncExitStack, its: ExitStack, limit: int = 65536) -> tuple[asyncio.StreamReader, int]:
    """Where we read, and where the model writes, each closed with its stack.

    Left to itself, uvloop takes a socket, which is no /dev/stderr.
    """
    from_model, to_us = os.pipe()
    its.callback(os.close, to_us)
    reader = asyncio.StreamReader(limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_model, "rb", buffering=0)
    )
    ours.callback(transport.close)
    return reader, to_us


async def _pipe_to(ours: AsyncExitStack, its: ExitStack) -> tuple[asyncio.StreamWriter, int]:
    """Where we write, and where the model reads, each closed with its stack."""
    from_us, to_model = os.pipe()
    its.callback(os.close, from_us)
    loop, unread = asyncio.get_running_loop(), asyncio.StreamReader()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(unread), os.fdopen(to_model, "wb", buffering=0)
    )
    ours.callback(_abort, transport)
    return asyncio.StreamWriter(transport, protocol, None, loop), from_us


class Process:
    """One running model; `ended` is set once it has ended and its log is complete."""

    def __init__(
        self, warden: Subprocess, port: int, output: asyncio.StreamReader, log: ModelLog, limits: ProcessLimits
    ) -> None:
        self.port = port
        self.ended = asyncio.Event()
        self.lines: JsonLinesClient | None = None
        self._watchdog = warden
        self._output = output
        self._log = log
        self._limits = limits
        self._group: int | None = None

    async def follow(self) -> None:
        """Keep its log, hear its answers, and notice its end."""
        try:
            async with asyncio.TaskGroup() as group:
                readers = {group.create_task(self._read(LineSplitter(self._log)))}
                if self.lines is not None:
                    readers.add(group.create_task(self.lines.follow()))
                status = await self._watchdog.wait()
                if status < 0:
                    self._kill()  # the warden itself was killed, and could end nothing
                # Its last words are in the pipe; but a descendant that left the group may hold that open for ever.
                await asyncio.wait(readers, timeout=_DRAIN_SECONDS)
                for reader in readers:
                    reader.cancel()
        finally:
            self.ended.set()
            if self.lines is not None:
                self.lines.crashed(self._exit_message())

    def _exit_message(self) -> str:
        """How it ended. Its last lines may tell of others' requests, unless it never ran."""
        status = self._watchdog.returncode
        if status == CANNOT_RUN:
            return self._with_tail("could not be run")
        bound = "" if self._limits.memory_mb is None else f" (it may take {self._limits.memory_mb} MiB of memory)"
        return f"ended with status {status} before it had answered{bound}; its log says more."

    async def _read(self, scribe: LineSplitter) -> None:
        try:
            first = await self._output.readline()
            if first.strip().isdigit():
                self._group = int(first)
            else:
                scribe.feed(first)  # the warden could not do its work, and says why
            while data := await self._output.read(65536):
                scribe.feed(data)
        finally:
            scribe.end()

    async def startup_error(self, start_seconds: float) -> str | None:
        """Wait until it answers; else tell why it does not, with the last lines of its log."""
        try:
            async with asyncio.timeout(start_seconds):
                while not self.ended.is_set():
                    if await self._is_healthy():
                        return None
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return self._with_tail(f"was not ready within {start_seconds:g} s")
        return self._with_tail(f"ended with status {self._watchdog.returncode} as it started")

    async def _is_healthy(self) -> bool:
        """Whether /health says so; a server that knows no /health is ready when it speaks HTTP at all.

        A program that speaks lines is when it runs: they wait in its stdin while it loads.
        """
        if self.lines is not None:
            return self._group is not None
        status = await _get(self.port, "/health")
        if status == 404:
            return await _get(self.port, "/v1/models") is not None
        return status == 200

    def is_running(self) -> bool:
        """Whether the model itself still runs: its end is known to the kernel before `ended` is set."""
        if self._group is None or self.ended.is_set() or (self.lines is not None and self.lines.is_over):
            return False
        try:
            os.kill(self._group, 0)
        except OSError as error:
            return isinstance(error, PermissionError)
        return True

    def _with_tail(self, why: str) -> str:
        tail = self._log.tail()
        return f"{why}. Its last lines:\n{tail}" if tail else f"{why}, and wrote nothing."

    def hang_up(self) -> None:
        """Let it end soon."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()  # which is the warden's cue

    async def stop(self) -> None:
        """End it and its group; takes at most STOP_SECONDS."""
        self.hang_up()
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
