"""Launcher of the real `signoff` with injected faults: `python -m faults.launcher COMMAND…`, as on the command line.

Real functions are wrapped by name, and none is replaced. When the orders say so, the process kills or stops itself at a
named point, after it has recorded the jobs that it works on. The orders also set how wrong its clock is.
`FAULTS_MUTATION` removes one protection from the real code, which the checker must detect.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from faults.mutations import MUTATIONS
from faults.orders import Orders
from signoff.cli import main
from signoff.server import dispatcher
from signoff.stores import writer
from signoff.stores.jobs import SqlJobs
from signoff.stores.sqlite import Sqlite
from signoff.work import perform, record, sweep
from signoff.work.jobs import deliver

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
# By default, the lease of a lost dispatcher runs out after a minute, which is too long for a short round.
DISPATCHER_LEASE_SECONDS, SEND_SECONDS = 4.0, 2.0


class Points:
    """The named points of this process, at which it can kill or stop itself."""

    def __init__(self, folder: Path) -> None:
        self._orders = Orders(folder / "orders")
        self._records_path = folder / "strikes"

    def reach(self, point: str, jobs: Iterable[str]) -> None:
        """Run the order for `point`, if there is one and `jobs` is not empty."""
        action = self._orders.at(point)
        job_ids = list(jobs) if action else []
        if not job_ids:
            return
        self._orders.clear()
        self.write_record(point=point, jobs=job_ids)
        os.kill(os.getpid(), SIGNALS[action])
        time.sleep(0.01)  # the signal may arrive a moment later

    def write_record(self, **fields: Any) -> None:
        """Append a record to a file that outlives this process."""
        with self._records_path.open("ab", buffering=0) as file:
            file.write(json.dumps({"at": _time(), "pid": os.getpid()} | fields).encode() + b"\n")

    def install(self) -> None:
        """Wrap the functions at which the points are."""
        after(SqlJobs, "claim", lambda _, jobs: self.reach("after-claim", [job.id for job in jobs]))
        after(SqlJobs, "insert", lambda _, job: self.reach("after-commit", [job.id]))
        after(SqlJobs, "transition", self._after_transition)
        for module in (perform, record):
            before(module, "settle", lambda services, job, outcome: self.reach("after-answer", [job.id]))
        before(sweep, "verdict_transition", lambda job, *_: self.reach("before-release", [job.id]))
        before(deliver, "_settle", lambda services, delivery, outcome: self.reach("after-post", [delivery.job_id]))
        after(writer, "_run_all", lambda arguments, _: self.reach("before-commit", jobs_of(arguments[0])))

    def _after_transition(self, _: object, job: Any) -> None:
        if job.is_terminal:
            self.reach("after-settle", [job.id])
        if job.release_at is not None:
            self.reach("after-decide", [job.id])

    def shift_the_clock(self) -> None:
        """Shift this process's clock as the orders say."""
        time.time = lambda: _time() + self._orders.clock_shift
        time.time_ns = lambda: _time_ns() + round(self._orders.clock_shift * 1e9)

    def watch_the_lock(self, path: Path) -> None:
        """Record when two processes write to one SQLite file at once.

        Each process takes a second lock while it holds the write lock; the second lock must be free. It is a POSIX
        lock, which Linux releases before the flocks of a killed process.
        """
        locked, lock_file = Sqlite._locked, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

        @contextlib.contextmanager
        def checked_lock(database: Sqlite) -> Generator[None]:
            with locked(database):
                try:
                    fcntl.lockf(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.write_record(broken="two processes write to one SQLite file at once")
                try:
                    yield
                finally:
                    fcntl.lockf(lock_file, fcntl.LOCK_UN)

        Sqlite._locked = checked_lock


def jobs_of(tx: Any) -> list[str]:
    """Return the ids of the jobs that a transaction changes."""
    return [name for topic, name in tx.changes if topic == "job"]


def after(owner: Any, name: str, callback: Callable[[tuple[Any, ...], Any], None]) -> None:
    """Wrap `owner.name` to call `callback` with the arguments and the result after each call."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        return await_result(arguments, result) if hasattr(result, "__await__") else run_callback(arguments, result)

    async def await_result(arguments: tuple[Any, ...], result: Awaitable[Any]) -> Any:
        return run_callback(arguments, await result)

    def run_callback(arguments: tuple[Any, ...], result: Any) -> Any:
        callback(arguments, result)
        return result

    setattr(owner, name, wrapper)


def before(owner: Any, name: str, callback: Callable[..., None]) -> None:
    """Wrap `owner.name` to call `callback` with the arguments before each call."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        callback(*arguments, **keywords)
        return function(*arguments, **keywords)

    setattr(owner, name, wrapper)


_time, _time_ns = time.time, time.time_ns

if __name__ == "__main__":
    points = Points(Path(os.environ["FAULTS_FOLDER"]))
    points.install()
    points.shift_the_clock()
    points.watch_the_lock(Path(os.environ["FAULTS_FOLDER"]).with_name("witness.lock"))
    dispatcher.LEASE_SECONDS, dispatcher.SEND_SECONDS = DISPATCHER_LEASE_SECONDS, SEND_SECONDS
    MUTATIONS[os.environ.get("FAULTS_MUTATION", "none")]()
    main()
