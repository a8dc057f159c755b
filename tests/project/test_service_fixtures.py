"""The guarantees of the fixtures that provide servers."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest
from redis.asyncio import Redis

HERE = Path(__file__).parent
WAIT_SECONDS = 60
STANDARD_PORTS = {5432, 5672, 6379}

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or relies on PR_SET_PDEATHSIG")


@pytest.mark.anyio
async def test_postgres_answers_in_an_empty_database(empty_postgres_url: str) -> None:
    connection = await asyncpg.connect(empty_postgres_url)
    try:
        assert await connection.fetchval("select 1") == 1
        assert await connection.fetch("select 1 from pg_tables where schemaname = 'public'") == []
    finally:
        await connection.close()


@pytest.mark.anyio
@pytest.mark.parametrize("turn", ["first", "second"])
async def test_a_table_of_one_test_does_not_exist_in_another(postgres_url: str, turn: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("create table mine (turn text)")
        await connection.execute("insert into mine values ($1)", turn)
        assert await connection.fetchval("select count(*) from mine") == 1
    finally:
        await connection.close()


def test_a_sync_test_may_run_its_own_loop_on_a_database(postgres_url: str) -> None:
    async def database() -> str:
        connection = await asyncpg.connect(postgres_url)
        try:
            return await connection.fetchval("select current_database()")
        finally:
            await connection.close()

    assert asyncio.run(database()) == urlsplit(postgres_url).path.strip("/")


@pytest.mark.anyio
async def test_rabbitmq_confirms_and_gives_back_a_message(rabbitmq_url: str, prefix: str) -> None:
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue(f"{prefix}letters", durable=True)

        confirmed = await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key=queue.name)
        message = await queue.get(timeout=60)

        assert confirmed
        assert message.body == b"hello"
        await message.ack()
        await queue.delete()


@pytest.mark.anyio
async def test_redis_gives_back_a_value(redis_url: str, prefix: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.set(f"{prefix}greeting", "hello")
        assert await redis.get(f"{prefix}greeting") == b"hello"


def test_a_service_is_never_the_one_on_the_standard_port(
    postgres_server: str, rabbitmq_url: str, redis_url: str
) -> None:
    ports = [urlsplit(url).port for url in (postgres_server, rabbitmq_url, redis_url)]
    assert len(ports) == len(set(ports))
    assert not STANDARD_PORTS.intersection(ports)


@pytest.mark.anyio
async def test_async_tests_run_on_uvloop() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")


@linux
@pytest.mark.usefixtures("redis_url")
def test_a_supervisor_ends_its_service_when_the_watched_process_dies(tmp_path: Path) -> None:
    with sleeper() as watched:
        folder, supervisor = supervise("redis", watched, tmp_path)
        server, port = one_child(supervisor.pid), port_of(folder, "redis")
        assert is_open(port)

        watched.kill()
        watched.wait()

        assert supervisor.wait(WAIT_SECONDS) == 0
        until(lambda: not is_open(port))
        until(lambda: not Path(f"/proc/{server}").exists())
        assert not folder.exists()


@linux
@pytest.mark.usefixtures("redis_url")
def test_a_service_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with sleeper() as watched:
        folder, supervisor = supervise("redis", watched, tmp_path)
        port = port_of(folder, "redis")

        supervisor.kill()
        supervisor.wait()

        until(lambda: not is_open(port))


@pytest.mark.parametrize(("ci", "outcome"), [("false", "1 skipped"), ("true", "1 error")])
def test_a_missing_service_is_reported_and_is_an_error_in_ci(ci: str, outcome: str) -> None:
    one_test = f"{__file__}::{test_redis_gives_back_a_value.__name__}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", one_test],
        env={"PATH": "", "CI": ci},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert outcome in run.stdout
    assert "MISSING SERVICES" in run.stdout
    assert "redis: redis-server is not installed" in run.stdout


@contextmanager
def sleeper() -> Generator[subprocess.Popen[bytes]]:
    """Yield a process to watch."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def supervise(name: str, watched: subprocess.Popen[bytes], within: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """Start a supervisor; return its folder and itself once its service answers."""
    folder = within / "run"
    folder.mkdir()
    options = ["--watch", str(watched.pid), "--dir", str(folder)]
    supervisor = subprocess.Popen(
        [sys.executable, str(HERE.parent / "support" / "service_supervisor.py"), name, *options]
    )
    until((folder / f"{name}.json").exists)
    return folder, supervisor


def port_of(folder: Path, name: str) -> int:
    """Return the port in a supervisor's answer."""
    words: dict[str, str] = json.loads((folder / f"{name}.json").read_text())
    port = urlsplit(words["url"]).port
    assert port is not None
    return port


def one_child(pid: int) -> int:
    """Return the pid of a process's only child."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def is_open(port: int) -> bool:
    """Return True if a server listens on `port`."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
        return True
    return False


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail if it does not within WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
