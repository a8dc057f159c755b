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
SENDER_LEASE_SECONDS, SEND_SECONDS = 4.0, 2.0


class Points:
    """The named points of this process, at which it can kill or stop itself."""

    def __init__(self, folder: Path) -> None:
        self._orders = Orders(folder / "orders")
        self._strikes = folder / "strikes"

    def come_to(self, point: str, jobs: Iterable[str]) -> None:
        """Run the order for `point`, if there is one and `jobs` is not empty."""
        how = self._orders.at(point)
        in_hand = list(jobs) if how else []
        if not in_hand:
            return
        self._orders.clear()
        self.write_down(point=point, jobs=in_hand)
        os.kill(os.getpid(), SIGNALS[how])
        time.sleep(0.01)  # the signal may arrive a moment later

    def write_down(self, **what: Any) -> None:
        """Append a record to a file that outlives this process."""
        with self._strikes.open("ab", buffering=0) as file:
            file.write(json.dumps({"at": _time(), "pid": os.getpid()} | what).encode() + b"\n")

    def install(self) -> None:
        """Wrap the functions at which the points are."""
        after(SqlJobs, "claim", lambda _, jobs: self.come_to("after-claim", [job.id for job in jobs]))
        after(SqlJobs, "insert", lambda _, job: self.come_to("after-commit", [job.id]))
        after(SqlJobs, "transition", self._moved)
        for lane in (perform, record):
            before(lane, "settle", lambda services, job, outcome: self.come_to("after-answer", [job.id]))
        before(sweep, "verdict_transition", lambda job, *_: self.come_to("before-release", [job.id]))
        before(deliver, "_settle", lambda services, delivery, outcome: self.come_to("after-post", [delivery.job_id]))
        after(writer, "_run_all", lambda arguments, _: self.come_to("before-commit", jobs_of(arguments[0])))

    def _moved(self, _: object, job: Any) -> None:
        if job.is_terminal:
            self.come_to("after-settle", [job.id])
        if job.release_at is not None:
            self.come_to("after-decide", [job.id])

    def watch_the_clock(self) -> None:
        """Shift this process's clock as the orders say."""
        time.time = lambda: _time() + self._orders.clock_shift
        time.time_ns = lambda: _time_ns() + round(self._orders.clock_shift * 1e9)

    def watch_the_lock(self, path: Path) -> None:
        """Record when two processes write to one SQLite file at once.

        Each process takes a second lock while it holds the write lock; the second lock must be free. It is a POSIX
        lock, which Linux releases before the flocks of a killed process.
        """
        locked, held = Sqlite._locked, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

        @contextlib.contextmanager
        def watched(database: Sqlite) -> Generator[None]:
            with locked(database):
                try:
                    fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.write_down(broken="two processes write to one SQLite file at once")
                try:
                    yield
                finally:
                    fcntl.lockf(held, fcntl.LOCK_UN)

        Sqlite._locked = watched


def jobs_of(tx: Any) -> list[str]:
    """Return the ids of the jobs that a transaction changes."""
    return [name for topic, name in tx.changes if topic == "job"]


def after(owner: Any, name: str, look: Callable[[tuple[Any, ...], Any], None]) -> None:
    """Wrap `owner.name` to call `callback` with the arguments and the result after each call."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def plain(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        return finished(arguments, result) if hasattr(result, "__await__") else seen(arguments, result)

    async def finished(arguments: tuple[Any, ...], result: Awaitable[Any]) -> Any:
        return seen(arguments, await result)

    def seen(arguments: tuple[Any, ...], result: Any) -> Any:
        look(arguments, result)
        return result

    setattr(owner, name, plain)


def before(owner: Any, name: str, look: Callable[..., None]) -> None:
    """Wrap `owner.name` to call `callback` with the arguments before each call."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def looking(*arguments: Any, **named: Any) -> Any:
        look(*arguments, **named)
        return function(*arguments, **named)

    setattr(owner, name, looking)


_time, _time_ns = time.time, time.time_ns

if __name__ == "__main__":
    points = Points(Path(os.environ["FAULTS_FOLDER"]))
    points.install()
    points.watch_the_clock()
    points.watch_the_lock(Path(os.environ["FAULTS_FOLDER"]).with_name("witness.lock"))
    dispatcher.LEASE_SECONDS, dispatcher.SEND_SECONDS = SENDER_LEASE_SECONDS, SEND_SECONDS
    MUTATIONS[os.environ.get("FAULTS_MUTATION", "none")]()
    main()
