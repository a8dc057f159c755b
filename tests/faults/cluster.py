"""The cluster: real `signoff` processes, each in its slot, which are killed, stopped and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from faults.history import History
from faults.orders import Orders
from support.service_supervisor import ending_with_us, free_ports

TESTS = Path(__file__).parents[1]
PLACES = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
READY_SECONDS = 40.0
POLL_SECONDS = 0.05
TAIL_LINES = 15
Kind = Literal["server", "worker"]


class Member:
    """A slot for a server or a worker, and the process that fills it now."""

    def __init__(self, kind: Kind, number: int, folder: Path, environment: Mapping[str, str], *more: str) -> None:
        self.kind, self.name = kind, f"{kind}-{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.orders = Orders(self.folder / "orders")
        [self.port] = free_ports(1)
        command = ("serve", "--port", str(self.port), *more) if kind == "server" else ("work",)
        self._command = [*ending_with_us(signal.SIGKILL), sys.executable, "-m", "faults.launcher", *command]
        self._environment = {**environment, "PYTHONPATH": PLACES, "FAULTS_FOLDER": str(self.folder)}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins_at = 0
        self.is_mourned = False
        """Whether the end of the process was written down."""

    @property
    def url(self) -> str:
        """Where a server is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def actor(self) -> str:
        """How the process is named in events."""
        return f"worker:{socket.gethostname()}:{self.pid}"

    def start(self) -> None:
        """Fills the slot; it is of use once it is `ready`."""
        self.orders.clear()
        self.orders.clock_shift = 0
        self.is_mourned = False
        log = self._log
        self._log_begins_at = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    async def ready(self) -> None:
        """Returns when the process works. Raises TimeoutError, RuntimeError if it has ended."""
        async with asyncio.timeout(READY_SECONDS):
            while not await self._is_ready():
                if self.has_ended:
                    raise RuntimeError(f"{self.name} could not start:\n{self.last_words}")
                await asyncio.sleep(POLL_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process is None or self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process; one that has ended does not mind."""
        if not self.has_ended:
            os.kill(self.pid, number)

    async def until_ended(self, seconds: float) -> bool:
        """Whether the process ends within that time."""
        assert self._process is not None
        try:
            async with asyncio.timeout(seconds):
                while not self.has_ended:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return False
        return True

    def strikes(self) -> list[dict[str, Any]]:
        """What the processes of this slot wrote down before they struck themselves, and which protections failed."""
        path = self.folder / "strikes"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    @property
    def last_words(self) -> str:
        """The end of the log."""
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
    """All slots. A process that ends although nobody ended it is a finding."""

    def __init__(self, members: list[Member], history: History) -> None:
        self.members = members
        self._history = history

    @property
    def servers(self) -> list[Member]:
        """The slots of servers."""
        return [member for member in self.members if member.kind == "server"]

    @property
    def workers(self) -> list[Member]:
        """The slots of workers."""
        return [member for member in self.members if member.kind == "worker"]

    async def start(self) -> None:
        """Fills every slot."""
        for member in self.members:
            member.start()
        for member in self.members:
            await member.ready()

    async def replace(self, member: Member) -> None:
        """Kills whatever is left in the slot, and fills it anew."""
        await self.kill(member)
        member.start()
        await member.ready()

    async def kill(self, member: Member) -> None:
        """Ends the process as the kernel does, unless it has done so itself, and writes that down once."""
        member.signal(signal.SIGKILL)
        await member.until_ended(READY_SECONDS)
        if member.is_mourned:
            return
        member.is_mourned = True
        self._history.tell("killed", name=member.name, kind=member.kind, pid=member.pid, port=member.port)

    async def mend(self) -> None:
        """Replaces those that ended by themselves, and tells of each."""
        for member in self.members:
            if member.has_ended:
                self._history.tell("vanished", name=member.name, log=member.last_words)
                member.is_mourned = True
                await self.replace(member)

    async def stop(self) -> None:
        """Ends every process in order, as an operator would; then by force."""
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGTERM)
        for member in self.members:
            if not await member.until_ended(READY_SECONDS / 2):
                self._history.tell("vanished", name=member.name, log=f"did not end when told to\n{member.last_words}")
                member.signal(signal.SIGKILL)
                await member.until_ended(READY_SECONDS)

    def end(self) -> None:
        """Leaves nobody behind."""
        for member in self.members:
            member.signal(signal.SIGKILL)
