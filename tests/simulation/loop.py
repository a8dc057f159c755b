"""Event loops without real time: one for each simulated process, all run by one world, whose seed sets the order."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import sys
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any

from signoff.errors import SignoffError
from simulation.clock import Clock

NEVER = sys.maxsize


class Violation(Exception):
    """A broken law of the simulation."""


class World:
    """True time, which advances only if no callback is ready, and the random choice of the next callback.

    A step is one callback that was run: of a process, of its network, or of the world outside.
    """

    def __init__(self, seed: int) -> None:
        self.random_float = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.broken: BaseException | None = None
        self._random = self.random_float.random
        self._ready: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._numbers = itertools.count()
        self._alarm, self._on_alarm = NEVER, lambda: None
        self._running: SimLoop | None = None

    def run(self, main: Coroutine[Any, Any, None], loop: SimLoop) -> None:
        """Run all loops until `main`, which runs on `loop`, has ended. Raises the first failure."""
        hooks = sys.get_asyncgen_hooks()
        gc.disable()  # it would finalize objects at times that no seed decides
        try:
            task = loop.create_task(main)
            while not task.done():
                self._step()
                if self.broken is not None:
                    raise self.broken
            task.result()
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            gc.enable()

    def alarm(self, steps: int, callback: Callable[[], None]) -> None:
        """Call `callback` between two steps, `steps` from now, whatever is in progress."""
        self._alarm, self._on_alarm = self.steps + steps, callback

    def at(self, when: float, handle: asyncio.Handle) -> None:
        """Schedule `handle` at the true time `when`, in seconds."""
        heapq.heappush(self._timers, (when, next(self._numbers), handle))

    def soon(self, handle: asyncio.Handle) -> None:
        """Make `handle` ready to run; any number of other handles may run before it."""
        self._ready.append(handle)

    def number(self) -> int:
        """Return a number that is unique in this world."""
        return next(self._numbers)

    def fail(self, broken: BaseException) -> None:
        """End the run after this step; only the first failure counts."""
        self.broken = self.broken or broken

    def _step(self) -> None:
        ready = self._ready
        while not ready:
            self._wait()
        index = int(self._random() * len(ready))
        handle, ready[index] = ready[index], ready[-1]
        ready.pop()
        loop: SimLoop = handle._loop  # type: ignore[attr-defined]
        if handle._cancelled or loop.holds_back(handle):  # type: ignore[attr-defined]
            return
        if loop is not self._running:
            self._running = loop
            events._set_running_loop(loop)
            sys.set_asyncgen_hooks(firstiter=None, finalizer=loop.finish)
        self.steps += 1
        handle._run()
        if self.steps >= self._alarm:
            self._alarm = NEVER
            self._on_alarm()

    def _wait(self) -> None:
        """Advance the true time to the next timer."""
        if not self._timers:
            raise Violation("nothing will ever happen again")
        self.now = max(self.now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self.now:
            handle = heapq.heappop(self._timers)[2]
            if not handle._cancelled:  # type: ignore[attr-defined]
                self._ready.append(handle)


class SimTask(asyncio.Task[Any]):
    """A task whose hash, and so its position in a set, does not depend on its address in memory."""

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one process. It can be paused, as by SIGSTOP, and killed, as by SIGKILL."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._held_back: list[asyncio.Handle] = []
        self._tasks: list[SimTask] = []
        self.is_paused = False
        self.is_dead = False

    def pause(self) -> None:
        """Run no callbacks from now on."""
        self.is_paused = True

    def go_on(self) -> None:
        """Resume; callbacks that became due during the pause are ready at once."""
        self.is_paused = False
        held_back, self._held_back = self._held_back, []
        for handle in held_back:
            self._world.soon(handle)

    def kill(self) -> None:
        """Run no code of this process again: no callback, no `except`, no `finally`."""
        self.is_dead = True
        self._held_back.clear()

    def bury(self) -> None:
        """Close the coroutines of a dead loop after the run. Python runs their clean-ups here, without any effect."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            for _ in range(10):  # a coroutine that awaits while it is closed has to be closed again
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except RuntimeError:
                    continue
                break

    def holds_back(self, handle: asyncio.Handle) -> bool:
        """Return True if `handle` may not run now. A paused loop runs it later."""
        if self.is_paused and not self.is_dead:
            self._held_back.append(handle)
        return self.is_paused or self.is_dead

    def finish(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close a generator that was abandoned before its end, as asyncio does."""
        if not self.is_dead:
            self.create_task(generator.aclose())  # type: ignore[arg-type]

    # Interface of an asyncio event loop

    def time(self) -> float:
        return self._clock.monotonic(self._world.now)

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_dead:
            self._world.soon(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.is_dead:
            self._world.at(self._clock.true_time(when), handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> SimTask:
        task = SimTask(self._world.number(), coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > 1000:
            self._tasks = [task for task in self._tasks if not task.done()]
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Fail the run for an unhandled error, unless it is one that callers may see.

        Such an error can occur after its caller has left.
        """
        error = context.get("exception")
        if not self.is_dead and not isinstance(error, SignoffError):
            self._world.fail(Violation(f"{context['message']}: {error!r}"))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.is_dead

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Ignore cancelled timers."""
