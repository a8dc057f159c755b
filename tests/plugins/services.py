"""Provide the servers that tests use: one of each kind per run, shared by all workers, started by the first test.

Tests share each server, so each test uses a part of it that no other test uses. `postgres_url` is a new database.
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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import asyncpg
    from xdist.workermanage import WorkerController

SUPERVISOR = Path(__file__).parents[1] / "support" / "service_supervisor.py"
ANSWER_SECONDS = 180
MEMORY_BYTES = 4 * 1024**3
LEAVE_SECONDS = 10
POLL_SECONDS = 0.02
PARENT_OF_TEMPORARY = "PYTEST_DEBUG_TEMPROOT"
"""Variable with the folder in which pytest creates the temporary folders of tests."""
STRATEGIES_SINCE = 15
"""First version of PostgreSQL in which a copy of a database has a strategy."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """State that all processes of one test run share."""

    folder: Path
    """Folder of the files of services; created for the first service."""
    controller: int
    """The process whose end is the end of the run."""


RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, or in an xdist worker join the controller's."""
    run_state: dict[str, str] | None = getattr(config, "workerinput", None)
    if run_state is None:
        parent = parent_of_services()
        folder = Path(parent, f"signoff-tests-{secrets.token_hex(8)}")
        if not os.statvfs(parent).f_flag & os.ST_NOEXEC:  # tests start programs that they have written
            os.environ.setdefault(PARENT_OF_TEMPORARY, parent)
        config.stash[RUN] = Run(folder=folder, controller=os.getpid())
    else:
        config.stash[RUN] = Run(folder=Path(run_state["run_folder"]), controller=int(run_state["run_controller"]))


def parent_of_services() -> str:
    """Return a folder in memory if there is room: it halves what a database costs that is created for one test.

    The temporary folders of tests are there too, as a test of a server waits for a dozen commits, and `pyproject.toml`
    has pytest remove the folder of each test that passes.
    """
    memory = "/dev/shm"
    with suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_BYTES:
            return memory
    return tempfile.gettempdir()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: "WorkerController") -> None:
    """Tell an xdist worker which run it belongs to."""
    run = node.config.stash[RUN]
    node.workerinput.update(run_folder=str(run.folder), run_controller=str(run.controller))


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's PostgreSQL, with the database from which others are created."""
    return service(pytestconfig.stash[RUN], "postgres")


@pytest.fixture(scope="session")
def rabbitmq_url(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's RabbitMQ; begin names there with `prefix`."""
    return service(pytestconfig.stash[RUN], "rabbitmq")


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's Redis; begin keys with `prefix`."""
    return service(pytestconfig.stash[RUN], "redis")


@pytest.fixture(scope="session")
def nats_url(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's NATS with JetStream; begin subjects with `prefix`."""
    return service(pytestconfig.stash[RUN], "nats")


@pytest.fixture(scope="session")
def mqtt_url(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's MQTT broker; begin topics with `prefix`."""
    return service(pytestconfig.stash[RUN], "mosquitto")


@pytest.fixture(scope="session")
def kafka_url(pytestconfig: pytest.Config) -> str:
    """Return the URL of the run's broker that speaks the protocol of Kafka; begin topics with `prefix`."""
    return service(pytestconfig.stash[RUN], "kafka")


@pytest.fixture(scope="session")
def chromium(pytestconfig: pytest.Config) -> str:
    """Return the path of the browser, which is no server: each process starts its own."""
    return service(pytestconfig.stash[RUN], "chromium")


@pytest.fixture
def prefix() -> str:
    """Return a unique prefix for names on shared servers."""
    return f"test-{secrets.token_hex(8)}-"


@pytest.fixture(scope="session")
def migrated(pytestconfig: pytest.Config, postgres_server: str) -> str:
    """Return the name of the migrated database that others are copied from; nothing connects to it any more."""
    run, name = pytestconfig.stash[RUN], "migrated"
    with (run.folder / "migrated.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            asyncio.run(execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template0"))
            asyncio.run(migrate(f"{postgres_server.rpartition('/')[0]}/{name}"))
            lock.write(name)
    return name


@pytest.fixture(scope="session")
def postgres_administrator(postgres_server: str) -> Iterator["Administrator"]:
    """Yield the connection of this process that creates and drops databases, as a new one for each costs more."""
    import asyncpg

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(postgres_server))
        yield Administrator(runner, connection)
        runner.run(connection.close())


@pytest.fixture
async def postgres_url(
    postgres_server: str, postgres_administrator: "Administrator", migrated: str, prefix: str, anyio_backend: object
) -> AsyncIterator[str]:
    """Yield the URL of a new database with the newest schema, for this test alone. Sync and async tests may use it."""
    del anyio_backend  # requested so that this fixture also runs in tests that do not request it
    async with postgres_administrator.database(prefix.rstrip("-"), migrated) as name:
        yield f"{postgres_server.rpartition('/')[0]}/{name}"


@pytest.fixture
async def empty_postgres_url(
    postgres_server: str, postgres_administrator: "Administrator", prefix: str, anyio_backend: object
) -> AsyncIterator[str]:
    """Yield the URL of an empty database."""
    del anyio_backend
    # template0 takes no connections, so nobody can be in the way of copying it.
    async with postgres_administrator.database(f"{prefix}empty", "template0") as name:
        yield f"{postgres_server.rpartition('/')[0]}/{name}"


class Administrator:
    """Connection that creates and drops databases, with an event loop of its own."""

    def __init__(self, runner: asyncio.Runner, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._runner = runner
        self._connection = connection

    @asynccontextmanager
    async def database(self, name: str, template: str) -> AsyncIterator[str]:
        """Create a database, yield its name, and drop it after the block."""
        # Copies of files cost half of what pages through the log do, which is the default since PostgreSQL 15.
        strategy = "STRATEGY FILE_COPY" if self._connection.get_server_version().major >= STRATEGIES_SINCE else ""
        await asyncio.to_thread(self._execute, f'CREATE DATABASE "{name}" TEMPLATE "{template}" {strategy}')
        yield name
        await asyncio.to_thread(self._execute, f'DROP DATABASE "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        self._runner.run(self._connection.execute(statement))


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
    """Return the URL of the run's server of this name, started if necessary; skip the test if there is none."""
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
    """Start the service's supervisor unless another worker has."""
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
    """Wait for the answer; write one if the supervisor has ended or takes too long."""
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
    """Print which services were not available to this run."""
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
    """End the run's services and remove their folder; otherwise, the supervisors would do so after this process."""
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
    """Return True if the supervisor still runs; it removes its pid file when it ends in order."""
    with suppress(FileNotFoundError):
        return alive(int(pid_file.read_text()))
    return False
