"""PostgreSQL, RabbitMQ and Redis for the job queues that are measured, from the programs that are on the machine.

Unlike those of the tests, PostgreSQL writes to disk before it confirms.
"""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from support import service_supervisor as supervisor
from support.service_supervisor import LOCALHOST


@dataclass(frozen=True, kw_only=True)
class Services:
    """Services that run."""

    postgres: str
    """URL of the server, without the name of a database."""
    amqp: str
    redis: str
    """URL, without the number of a database."""
    pids: tuple[int, ...]
    versions: dict[str, str]
    """Version of each service by its name."""


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """Run the three services with their files in `folder`, for the duration of the block."""
    programs = {name: supervisor.SERVICES[name].binary() for name in ("postgres", "rabbitmq", "redis")}
    if missing := [name for name, program in programs.items() if program is None]:
        raise SystemExit(f"{', '.join(missing)} is not installed: run `make bench-peers`.")
    ports = supervisor.free_ports(5)
    places = {name: supervisor.empty(folder / name) for name in programs}
    with ExitStack() as stack, silent(folder / "services.log"):
        supervisor.make_cluster(programs["postgres"], places["postgres"])
        database = stack.enter_context(postgres(programs["postgres"], places["postgres"], ports[0]))
        environment = supervisor.rabbitmq_env(places["rabbitmq"], *ports[1:4])
        stack.enter_context(supervisor.epmd_at(places["rabbitmq"], ports[3]))
        broker = stack.enter_context(
            supervisor.rabbitmq_at(programs["rabbitmq"], places["rabbitmq"], ports[1], environment)
        )
        results = stack.enter_context(supervisor.redis_at(programs["redis"], places["redis"], ports[4]))
        running = Services(
            postgres=f"postgresql://postgres@{LOCALHOST}:{ports[0]}",
            amqp=f"amqp://guest:guest@{LOCALHOST}:{ports[1]}/",
            redis=f"redis://{LOCALHOST}:{ports[4]}",
            pids=(database.pid, broker.pid, results.pid),
            versions=versions(programs),
        )
        end = stack.pop_all()
    with end:
        yield running


def versions(programs: Mapping[str, Path]) -> dict[str, str]:
    """Return the versions of the programs."""
    commands = {
        "PostgreSQL": [programs["postgres"], "--version"],
        "RabbitMQ": ["rabbitmqctl", "version"],
        "Redis": [programs["redis"], "--version"],
    }
    texts = {
        name: subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for name, command in commands.items()
    }
    numbers = {name: re.search(r"\d+(\.\d+)+", text) for name, text in texts.items()}
    return {name: number[0] if number else "unknown" for name, number in numbers.items()}


@contextmanager
def silent(log: Path) -> Iterator[None]:
    """Let the programs that are started in the block write to a file."""
    saved = [(number, os.dup(number)) for number in (1, 2)]
    with log.open("ab") as file:
        for number, _ in saved:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


@contextmanager
def postgres(program: Path, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run PostgreSQL with its own defaults, on the cluster in `folder`."""
    settings = ["unix_socket_directories=", "max_connections=200"]
    options = [option for setting in settings for option in ("-c", setting)]
    command = [program, "-D", folder / "data", "-h", LOCALHOST, "-p", str(port), *options]
    user = supervisor.unprivileged("postgres", "nobody")
    with supervisor.running(command, folder, user=user, stop=signal.SIGQUIT) as server:
        supervisor.wait_until(lambda: supervisor.says_ready(folder / "data" / "postmaster.pid"), server)
        yield server


def query(url: str, statement: str) -> object:
    """Run a statement on a connection of its own, and return the first value."""

    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())
