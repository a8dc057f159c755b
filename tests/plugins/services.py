"""Provide the servers that tests use: one of each kind per run, shared by all workers, started by the first test.

A test never has a server to itself, so it uses a part that no other test uses. `postgres_url` is a new database.
`prefix` starts the names of Redis keys and of RabbitMQ queues and exchanges. All tests share one virtual host, because
a new virtual host costs more than a test.

Every test process imports this module, so the module imports database drivers and the product only where a fixture
needs them.
"""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

SUPERVISOR = Path(__file__).parents[1] / "support" / "service_supervisor.py"
ANSWER_SECONDS = 180
LEAVE_SECONDS = 10
POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Run:
    """State that all processes of one test run share."""

    folder: Path
    """Where services keep their files; made when the first one is asked for."""
    controller: int
    """The process whose end is the end of the run."""


RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, or in an xdist worker join the controller's."""
    told: dict[str, str] | None = getattr(config, "workerinput", None)
    if told is None:
        folder = Path(tempfile.gettempdir(), f"signoff-tests-{secrets.token_hex(8)}")
        config.stash[RUN] = Run(folder=folder, controller=os.getpid())
    else:
        config.stash[RUN] = Run(folder=Path(told["run_folder"]), controller=int(told["run_controller"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: "WorkerController") -> None:
    """Tell an xdist worker which run it belongs to."""
    run = node.config.stash[RUN]
    node.workerinput.update(run_folder=str(run.folder), run_controller=str(run.controller))


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> str:
    """Return the url of the run's PostgreSQL, at the database for making others."""
    return service(pytestconfig.stash[RUN], "postgres")


@pytest.fixture(scope="session")
def rabbitmq_url(pytestconfig: pytest.Config) -> str:
    """Return the url of the run's RabbitMQ; name what you declare there with `prefix`."""
    return service(pytestconfig.stash[RUN], "rabbitmq")


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> str:
    """Return the url of the run's Redis; name your keys with `prefix`."""
    return service(pytestconfig.stash[RUN], "redis")


@pytest.fixture(scope="session")
def nats_url(pytestconfig: pytest.Config) -> str:
    """Return the url of the run's NATS with JetStream; name your subjects with `prefix`."""
    return service(pytestconfig.stash[RUN], "nats")


@pytest.fixture(scope="session")
def mqtt_url(pytestconfig: pytest.Config) -> str:
    """Return the url of the run's MQTT broker; name your topics with `prefix`."""
    return service(pytestconfig.stash[RUN], "mosquitto")


@pytest.fixture
def prefix() -> str:
    """Return a beginning for names on shared servers which no other test has."""
    return f"test-{secrets.token_hex(8)}-"


@pytest.fixture(scope="session")
def migrated(pytestconfig: pytest.Config, postgres_server: str) -> str:
    """Return the name of the run's database that others are copied from; nobody connects to it once it is made."""
    run, name = pytestconfig.stash[RUN], "migrated"
    with (run.folder / "migrated.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            asyncio.run(execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template0"))
            asyncio.run(migrate(f"{postgres_server.rpartition('/')[0]}/{name}"))
            lock.write(name)
    return name


@pytest.fixture
async def postgres_url(postgres_server: str, migrated: str, prefix: str, anyio_backend: object) -> AsyncIterator[str]:
    """Return the url of a new database at the newest schema that only this test has; sync tests may ask for it too."""
    del anyio_backend  # asked for so that this fixture runs in tests which do not ask for it themselves
    async with database(postgres_server, prefix.rstrip("-"), migrated) as url:
        yield url


@pytest.fixture
async def empty_postgres_url(postgres_server: str, prefix: str, anyio_backend: object) -> AsyncIterator[str]:
    """Return the url of a database with nothing in it."""
    del anyio_backend
    # template0 takes no connections, so nobody can be in the way of copying it.
    async with database(postgres_server, f"{prefix}empty", "template0") as url:
        yield url


@asynccontextmanager
async def database(server: str, name: str, template: str) -> AsyncIterator[str]:
    """A database of its own, gone with the block."""
    await execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield f"{server.rpartition('/')[0]}/{name}"
    await execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


async def migrate(url: str) -> None:
    """Bring a database to the newest schema."""
    from signoff.stores.sql import SqlStore

    store = SqlStore(url)
    try:
        await store.migrate()
    finally:
        await store.close()


async def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def service(run: Run, name: str) -> str:
    """Return the url of the run's server of this name, started if nobody has; without one the test ends here."""
    answer = run.folder / f"{name}.json"
    if not answer.exists():
        ensure_supervisor(run, name)
        wait_for(answer, pid_file=run.folder / f"{name}.pid")
    words: dict[str, str] = json.loads(answer.read_text())
    if "url" in words:
        return words["url"]
    why = f"{name} missing: {words['missing']}"
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def ensure_supervisor(run: Run, name: str) -> None:
    """Start the service's supervisor unless another worker did."""
    run.folder.mkdir(exist_ok=True)
    run.folder.chmod(0o755)  # PostgreSQL may have to run as another user
    with (run.folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid_file = run.folder / f"{name}.pid"
        if not pid_file.exists():
            pid_file.write_text(str(spawn_supervisor(run, name)))


def spawn_supervisor(run: Run, name: str) -> int:
    """Start a process that outlives this worker and holds none of its pipes; return its pid."""
    options = ["--watch", str(run.controller), "--dir", str(run.folder)]
    nothing = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)]
    return os.posix_spawn(
        sys.executable,
        [sys.executable, str(SUPERVISOR), name, *options],
        os.environ,
        file_actions=nothing,
        setpgroup=0,  # an interrupt from the keyboard is for pytest, which then ends us in order
    )


def wait_for(answer: Path, *, pid_file: Path) -> None:
    """Return when the answer is there; write one ourselves when its supervisor ended or owes it too long."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while alive(int(pid_file.read_text())) and time.monotonic() < deadline:
        if answer.exists():
            return
        time.sleep(POLL_SECONDS)
    draft = answer.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"missing": f"its supervisor ended, or gave no answer within {ANSWER_SECONDS} s"}))
    draft.replace(answer)


def alive(pid: int) -> bool:
    """Return True if the process still runs, as a child or not."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly which services this run had to do without."""
    missing: dict[str, str] = {}
    for answer in sorted(config.stash[RUN].folder.glob("*.json")):
        words: dict[str, str] = json.loads(answer.read_text())
        if "missing" in words:
            missing[answer.stem] = words["missing"]
    if missing:
        terminalreporter.section("MISSING SERVICES", sep="!", red=True, bold=True)
        for name, why in missing.items():
            terminalreporter.line(f"{name}: {why}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run's services and remove their folder; the supervisors would, but only after us."""
    run = config.stash[RUN]
    if run.controller != os.getpid():
        return
    pid_files = list(run.folder.glob("*.pid"))
    for pid_file in pid_files:
        with suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + LEAVE_SECONDS
    for pid_file in pid_files:
        while there(pid_file) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    shutil.rmtree(run.folder, ignore_errors=True)


def there(pid_file: Path) -> bool:
    """Return True if the supervisor still runs; it removes its pid file when it leaves in order."""
    with suppress(FileNotFoundError):
        return alive(int(pid_file.read_text()))
    return False
