"""Group commit: when a transaction ends, the next one starts with all operations that wait.

An operation whose result nobody needs at once may wait some milliseconds for others, as a commit costs more than a row.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningUpdate

from signoff.errors import Overloaded, SignoffError, write_timed_out
from signoff.stores.statements import execute_each
from signoff.stores.transaction import Tx

T = TypeVar("T")
# How long a deferred operation waits for others.
GATHER_SECONDS = 0.01
# Maximum number of calls whose callers have their answers and whose rows are not committed: a crash loses these.
MAX_DEFERRED = 512
RETRY_SECONDS = 0.1
log = structlog.get_logger()


class RowUpdate(NamedTuple):
    """Operation that updates the row which its `lock_key` names, by a statement that other operations share.

    Neighbours in a group with the same statement are executed together: a server gets them in one message.
    """

    statement: ReturningUpdate[Any]
    """The update, built once. The first column that it returns is the `lock_key`."""
    parameters: Callable[[Tx], dict[str, Any]]
    """Function that returns its parameters."""
    then: Callable[[Tx, Sequence[Any] | None], Any]
    """Function for the row that was changed, or for None if none was; see `Writer` for what it may do."""


Operation = Callable[[Tx], Any] | RowUpdate
RunGroup = Callable[[Callable[[Tx], list[Any]]], Awaitable[list[Any]]]


class Pending(NamedTuple):
    """An operation that waits for a transaction."""

    operation: Operation
    """The function to run in the transaction, or the update."""
    done: asyncio.Future[Any]
    """The future of its result."""
    is_deferred: bool = False
    """True to run it again if the database was unavailable."""
    is_repeated: bool = False
    """True if it has been run before, and may have been committed."""
    lock_key: str | None = None
    """The row for whose lock it waits, in an order that all processes share."""


class Writer:
    """A queue of operations that are committed in groups.

    An operation that raises a SignoffError must do so before it writes; it fails alone. After any other error the group
    is rolled back, and its halves run separately, until only the faulty operation fails. So an operation may run more
    than once. An operation whose caller was cancelled before it runs is skipped.

    `run_group` runs a function in a transaction and commits it. It raises what the function raises, or a SignoffError
    if the database is at fault: then all operations of the group fail with it, except for deferred ones.
    """

    def __init__(self, run_group: RunGroup, *, waiting_limit: int, group_limit: int, timeout_seconds: float) -> None:
        self._run_group = run_group
        self._group_limit = group_limit
        self._group_size = group_limit
        self._timeout_seconds = timeout_seconds
        self._waiting = asyncio.Queue[Pending](waiting_limit)
        self._deferred_slots = asyncio.Semaphore(MAX_DEFERRED)
        self._is_due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._repeats = dict[asyncio.TimerHandle, Pending]()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Start the task that commits groups."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def write(self, operation: Callable[[Tx], T] | RowUpdate, *, lock_key: str | None = None) -> T:
        """Run `operation` and return its result when it is committed. Raises Overloaded if that takes too long."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await (await self.enqueue(operation, lock_key=lock_key))
        except TimeoutError:
            raise write_timed_out() from None

    async def enqueue(
        self, operation: Callable[[Tx], T] | RowUpdate, *, lock_key: str | None = None
    ) -> asyncio.Future[T]:
        """Queue `operation` when there is room, and return a future of its result. Raises Overloaded if closed."""
        waiting = Pending(operation, self._new_future(), lock_key=lock_key)
        await self._waiting.put(waiting)
        self._is_due.set()
        return waiting.done

    async def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> asyncio.Future[T]:
        """Queue `operation` for the next group, which begins `at_once`, or else within about GATHER_SECONDS.

        While the database is unavailable, it is run again until it is committed. So it may have been committed before:
        then it must fail, or change nothing. Return a future of its result. Raises Overloaded if closed, or if
        MAX_DEFERRED operations are deferred for too long.
        """
        waiting = Pending(operation, self._new_future(), is_deferred=True)
        if self._deferred_slots.locked():
            await self._wait_for_slot()
        else:  # the usual case, without the cost of a timeout
            await self._deferred_slots.acquire()
        waiting.done.add_done_callback(self._release_slot)
        try:
            self._check_open()  # it may have been closed while this call waited
            if self._waiting.full():
                await self._waiting.put(waiting)
            else:
                self._waiting.put_nowait(waiting)
        except BaseException:
            waiting.done.cancel()
            raise
        self._schedule(at_once=at_once)
        return waiting.done

    async def close(self) -> None:
        """Accept no more operations, and commit those that wait. Those that the database does not take fail."""
        self._closed = True
        for timer, waiting in self._repeats.items():
            timer.cancel()
            if self._waiting.full():
                _set_result(waiting.done, Overloaded("The database was closed."))
            else:
                self._waiting.put_nowait(waiting)
        self._repeats.clear()
        if self._task is not None and not self._task.done():
            self._is_due.set()
            await asyncio.wait([self._task])

    def _check_open(self) -> None:
        if self._closed:
            raise Overloaded("The database was closed.")

    def _new_future(self) -> asyncio.Future[Any]:
        self._check_open()
        return asyncio.get_running_loop().create_future()

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._deferred_slots.acquire()
        except TimeoutError:
            raise Overloaded("Too many finished calls wait to be written to the database; try again later.") from None

    def _schedule(self, *, at_once: bool) -> None:
        """Begin the next group in GATHER_SECONDS; or now, also if it is full, or if a busy loop delays the timer."""
        loop = asyncio.get_running_loop()
        if at_once or self._waiting.qsize() >= self._group_limit:
            self._is_due.set()
        elif self._timer is None:
            self._timer = loop.call_later(GATHER_SECONDS, self._is_due.set)
        elif self._timer.when() <= loop.time():
            self._is_due.set()

    def _release_slot(self, _: object) -> None:
        self._deferred_slots.release()

    async def _run(self) -> None:
        while not self._closed or not self._waiting.empty():
            await self._is_due.wait()
            self._is_due.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            group = self._next_group()
            try:
                await self._flush(group)
            except Exception as error:  # noqa: BLE001 -- the next writes must go on, for example if a log raises
                for waiting in group:
                    _set_result(waiting.done, error)
            if self._closed:
                await asyncio.sleep(0)  # let callers that waited for a full queue put their operations
                self._is_due.set()

    def _next_group(self) -> list[Pending]:
        """Return the operations that wait, up to a limit."""
        group = list[Pending]()
        while len(group) < self._group_size and not self._waiting.empty():
            group.append(self._waiting.get_nowait())
        if not self._waiting.empty():
            self._is_due.set()
        return group

    async def _flush(self, group: Sequence[Pending]) -> None:
        """Commit the operations as one group, and set their results."""
        pending = [waiting for waiting in group if not waiting.done.cancelled()]
        pending.sort(key=lambda waiting: (waiting.lock_key is None, waiting.lock_key))
        results = await self._commit(pending) if pending else []
        self._adapt_group_size(pending, results)
        faults = list[Exception]()
        for waiting, result in zip(pending, results, strict=True):
            if waiting.is_deferred and isinstance(result, Overloaded) and not self._closed:
                self._repeat(waiting)
            elif waiting.is_repeated and isinstance(result, IntegrityError):
                _set_result(waiting.done, None)  # it was committed before, although its result was lost
            else:
                _set_result(waiting.done, result)
                if isinstance(result, Exception) and not isinstance(result, SignoffError):
                    faults.append(result)
        for error in faults:
            log.error("database_write_failed", error=repr(error))

    def _adapt_group_size(self, group: Sequence[Pending], results: Sequence[Any]) -> None:
        """Make groups smaller while repeated ones fail, as they may be too large for the time limits of the database.

        Make them larger again when the database takes them.
        """
        failed = [waiting for waiting, result in zip(group, results, strict=True) if isinstance(result, Overloaded)]
        if any(waiting.is_repeated for waiting in failed):
            self._group_size = max(1, len(group) // 2)
        elif group and not failed:
            self._group_size = min(self._group_limit, 2 * self._group_size)

    def _repeat(self, waiting: Pending) -> None:
        """Queue an operation again after RETRY_SECONDS."""

        def queue() -> None:
            del self._repeats[timer]
            if self._waiting.full():
                self._repeat(waiting)
            else:
                self._waiting.put_nowait(waiting)
                self._is_due.set()

        waiting = waiting._replace(is_repeated=True)
        timer = asyncio.get_running_loop().call_later(RETRY_SECONDS, queue)
        self._repeats[timer] = waiting

    async def _commit(self, group: Sequence[Pending]) -> list[Any]:
        try:
            return await self._run_group(lambda tx: _run_all(tx, group))
        except SignoffError as error:
            return [error] * len(group)
        except Exception as error:  # noqa: BLE001 -- each operation gets its own result
            if len(group) == 1:
                return [error]
            log.debug("write_group_split", error=repr(error), operations=len(group))
        half = len(group) // 2
        return [*await self._commit(group[:half]), *await self._commit(group[half:])]


def _run_all(tx: Tx, group: Sequence[Pending]) -> list[Any]:
    results = [result for run in _runs(group) for result in _run_together(tx, run)]
    tx.flush()
    tx.run_at_end()
    tx.flush()
    tx.flush_sums()
    return results


def _runs(group: Sequence[Pending]) -> Iterator[list[Pending]]:
    """Yield the operations in their order: neighbours that update rows by the same statement together, others alone."""
    run = list[Pending]()
    for waiting in group:
        if run and not _share_a_statement(run[-1], waiting):
            yield run
            run = []
        run.append(waiting)
    if run:
        yield run


def _share_a_statement(first: Pending, second: Pending) -> bool:
    """Return True for updates of two rows by one statement; a row that is updated twice has two results."""
    one, other = first.operation, second.operation
    is_shared = isinstance(one, RowUpdate) and isinstance(other, RowUpdate) and one.statement is other.statement
    return is_shared and first.lock_key != second.lock_key


def _run_together(tx: Tx, run: Sequence[Pending]) -> list[Any]:
    """Run operations that `_runs` has put together, and return their results."""
    operation = run[0].operation
    if not isinstance(operation, RowUpdate):
        return [None if run[0].done.cancelled() else _run_one(operation, tx)]
    # One that is among these takes place whole, also if its caller leaves while the server answers.
    updates = {
        waiting.lock_key: cast("RowUpdate", waiting.operation) for waiting in run if not waiting.done.cancelled()
    }
    parameters = [update.parameters(tx) for update in updates.values()]
    rows = {row[0]: row for row in execute_each(tx.conn, operation.statement, parameters)} if parameters else {}
    results = {key: _run_one(update.then, tx, rows.get(key)) for key, update in updates.items()}
    return [results.get(waiting.lock_key) for waiting in run]


def _run_one(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except SignoffError as error:
        return error


def _set_result(done: asyncio.Future[Any], result: Any) -> None:
    """Set the result of an operation, or its error, unless its caller has left."""
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
    else:
        done.set_result(result)
