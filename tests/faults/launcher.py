"""The real `signoff`, in a process that obeys orders: `python -m faults.launcher COMMAND…`, as on the command line.

Real functions are wrapped by their names, nothing is replaced: at a named point the process kills or stops itself when
its orders say so, and first writes down which jobs it had in its hands. Its clock is as wrong as its orders say.
`FAULTS_MUTATION` takes one protection out of the real code, for the checker to find.
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
# A sender that vanishes is missed after a minute: too long to wait for in a short round.
SENDER_LEASE_SECONDS, SEND_SECONDS = 4.0, 2.0


class Points:
    """The named points of this process."""

    def __init__(self, folder: Path) -> None:
        self._orders = Orders(folder / "orders")
        self._strikes = folder / "strikes"

    def come_to(self, point: str, jobs: Iterable[str]) -> None:
        """Does what the orders say of `point`, unless no job is in hand there."""
        how = self._orders.at(point)
        in_hand = list(jobs) if how else []
        if not in_hand:
            return
        self._orders.clear()
        self.write_down(point=point, jobs=in_hand)
        os.kill(os.getpid(), SIGNALS[how])
        time.sleep(0.01)  # a signal to oneself may take a moment

    def write_down(self, **what: Any) -> None:
        """Adds a line that outlives this process."""
        with self._strikes.open("ab", buffering=0) as file:
            file.write(json.dumps({"at": _time(), "pid": os.getpid()} | what).encode() + b"\n")

    def install(self) -> None:
        """Puts the points where they belong."""
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
        """Lets this process's clock be as wrong as the orders say."""
        time.time = lambda: _time() + self._orders.clock_shift
        time.time_ns = lambda: _time_ns() + round(self._orders.clock_shift * 1e9)

    def watch_the_lock(self, path: Path) -> None:
        """Writes down when two processes are where only one may be: each holds a second lock there, which is free.

        It is one of POSIX's: of a process that is killed, Linux takes those away before it takes away flocks.
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
    """The jobs that a transaction has news of."""
    return [name for topic, name in tx.changes if topic == "job"]


def after(owner: Any, name: str, look: Callable[[tuple[Any, ...], Any], None]) -> None:
    """Calls `look` with the arguments and the result each time `owner.name` has returned."""
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
    """Calls `look` with the arguments each time before `owner.name` is called."""
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
