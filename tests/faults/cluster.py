"""Cluster of real `signoff` processes, each in a slot, which faults kill, stop and replace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from faults.history import History
from faults.orders import Orders
from support.service_supervisor import ending_with_us, free_ports

TESTS = Path(__file__).parents[1]
READY_SECONDS = 120.0
POLL_SECONDS = 0.05
TAIL_LINES = 15
Kind = Literal["server", "worker"]


@dataclass(frozen=True)
class Program:
    """The code of a process: the command that runs its command line with injected faults, and its import path."""

    launcher: tuple[str, ...]
    python_path: str


OURS = Program((sys.executable, "-m", "faults.launcher"), os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]))


class Member:
    """A slot for a server or a worker, with the process that currently fills it."""

    def __init__(
        self,
        kind: Kind,
        number: int,
        folder: Path,
        environment: Mapping[str, str],
        *more: str,
        program: Program = OURS,
    ) -> None:
        self.kind, self.name = kind, f"{kind}-{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.orders = Orders(self.folder / "orders")
        [self.port] = free_ports(1)
        command = ("serve", "--port", str(self.port), *more) if kind == "server" else ("work",)
        self._command = [*ending_with_us(signal.SIGKILL), *program.launcher, *command]
        self._environment = {**environment, "PYTHONPATH": program.python_path, "FAULTS_FOLDER": str(self.folder)}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins_at = 0
        self.is_end_recorded = False
        """True after the end of the process was recorded in the history."""

    @property
    def url(self) -> str:
        """Return the base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def actor(self) -> str:
        """Return the name of the process in events."""
        return f"worker:{socket.gethostname()}:{self.pid}"

    def start(self) -> None:
        """Start a process in the slot; wait for `ready` before you use it."""
        self.orders.clear()
        self.orders.clock_shift = 0
        self.is_end_recorded = False
        log = self._log
        self._log_begins_at = log.stat().st_size if log.exists() else 0
        with log.open("ab") as log_file:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )

    async def ready(self) -> None:
        """Wait until the process is ready. Raises TimeoutError, and RuntimeError if the process has ended."""
        async with asyncio.timeout(READY_SECONDS):
            while not await self._is_ready():
                if self.has_ended:
                    raise RuntimeError(f"{self.name} could not start:\n{self.log_tail}")
                await asyncio.sleep(POLL_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Return True if no process runs in the slot."""
        return self._process is None or self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        if not self.has_ended:
            os.kill(self.pid, number)

    async def wait_until_ended(self, seconds: float) -> bool:
        """Wait for the process to end, and return True if it did so in time."""
        assert self._process is not None
        try:
            async with asyncio.timeout(seconds):
                while not self.has_ended:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return False
        return True

    def records(self) -> list[dict[str, Any]]:
        """Return what the processes of this slot recorded: kills and stops of themselves, and failed protections."""
        path = self.folder / "strikes"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    @property
    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    async def _is_ready(self) -> bool:
        if self.kind == "worker":
            with self._log.open("rb") as log:
                log.seek(self._log_begins_at)
                return b"Working" in log.read()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http,
                http.get(f"{self.url}/health/ready") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


class Cluster:
    """All slots. A process that ends by itself is a finding."""

    def __init__(self, members: list[Member], history: History) -> None:
        self.members = members
        self._history = history

    @property
    def servers(self) -> list[Member]:
        """Return the slots of servers."""
        return [member for member in self.members if member.kind == "server"]

    @property
    def workers(self) -> list[Member]:
        """Return the slots of workers."""
        return [member for member in self.members if member.kind == "worker"]

    async def start(self) -> None:
        """Start every process, and wait until all are ready."""
        for member in self.members:
            member.start()
        for member in self.members:
            await member.ready()

    async def replace(self, member: Member) -> None:
        """Kill the process in the slot if it still runs, and start a new one."""
        await self.kill(member)
        member.start()
        await member.ready()

    async def kill(self, member: Member) -> None:
        """Kill the process with SIGKILL unless it has ended, and record the end once."""
        member.signal(signal.SIGKILL)
        await member.wait_until_ended(READY_SECONDS)
        if member.is_end_recorded:
            return
        member.is_end_recorded = True
        self._history.record("killed", name=member.name, kind=member.kind, pid=member.pid, port=member.port)

    async def replace_ended(self) -> None:
        """Replace the processes that ended by themselves, and record each."""
        for member in self.members:
            if member.has_ended:
                self._history.record("vanished", name=member.name, log=member.log_tail)
                member.is_end_recorded = True
                await self.replace(member)

    async def stop(self) -> None:
        """Stop every process with SIGTERM, and kill those that do not end in time."""
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGTERM)
        for member in self.members:
            if not await member.wait_until_ended(READY_SECONDS / 2):
                self._history.record("vanished", name=member.name, log=f"did not end when told to\n{member.log_tail}")
                member.signal(signal.SIGKILL)
                await member.wait_until_ended(READY_SECONDS)

    def kill_all(self) -> None:
        """Kill every process."""
        for member in self.members:
            member.signal(signal.SIGKILL)
