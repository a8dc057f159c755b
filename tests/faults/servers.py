"""PostgreSQL, RabbitMQ and Redis servers that belong to a round, which may stop, kill and restart them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from support import service_supervisor as services

CONNECTIONS = 100
CTL_SECONDS = 30


class Server:
    """A server with its URL, which can be started and ended many times."""

    def __init__(self, url: str, serve: Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]) -> None:
        self.url = url
        self._serve = serve
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the server with the data it kept, and wait until it answers."""
        self._process = await asyncio.to_thread(self._running.enter_context, self._serve())

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server with a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            await asyncio.to_thread(self._process.wait, CTL_SECONDS)
        await asyncio.to_thread(self._running.close)


def postgres(folder: Path) -> Server:
    """Return a PostgreSQL server with a new cluster in `folder`. Raises MissingError."""
    binary, [port] = program_of("postgres"), services.free_ports(1)
    services.empty(folder)
    services.make_cluster(binary, folder)
    url = f"postgresql://postgres@{services.LOCALHOST}:{port}/postgres"
    settings = (f"max_connections={CONNECTIONS}", "track_commit_timestamp=on")
    return Server(url, lambda: services.postgres_at(binary, folder, port, *settings))


def redis(folder: Path) -> Server:
    """Return a Redis server without persistence. Raises MissingError."""
    binary, [port] = program_of("redis"), services.free_ports(1)
    services.empty(folder)
    return Server(f"redis://{services.LOCALHOST}:{port}/0", lambda: services.redis_at(binary, folder, port))


class RabbitMQ(Server):
    """A RabbitMQ node with its own epmd and control program. Raises MissingError."""

    def __init__(self, folder: Path) -> None:
        binary, (port, distribution, epmd) = program_of("rabbitmq"), services.free_ports(3)
        self._folder, self._epmd, self._port = services.empty(folder), epmd, port
        self._env = services.rabbitmq_env(folder, port, distribution, epmd)
        self._control = binary.with_name("rabbitmqctl")
        self._running_epmd = ExitStack()
        url = f"amqp://guest:guest@{services.LOCALHOST}:{port}/"
        super().__init__(url, lambda: services.rabbitmq_at(binary, folder, port, self._env))

    async def start_epmd(self) -> None:
        """Start epmd, which keeps running when the node is killed."""
        await asyncio.to_thread(self._running_epmd.enter_context, services.epmd_at(self._folder, self._epmd))

    async def control(self, *arguments: str) -> None:
        """Run `rabbitmqctl ARGUMENTS` on this node. Raises RuntimeError if it fails."""
        env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"} | self._env
        command = [str(self._control), "-n", self._env["RABBITMQ_NODENAME"], *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, env=env, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(CTL_SECONDS):
            await process.wait()
        if process.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} ended with {process.returncode}")

    async def end_epmd(self) -> None:
        """End epmd."""
        await asyncio.to_thread(self._running_epmd.close)


def program_of(name: str) -> Path:
    """Return the path of a server program, and install it if possible. Raises MissingError."""
    service = services.SERVICES[name]
    return services.installed(service.package, service.binary)
