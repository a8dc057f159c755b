"""The stop of this process: first it finishes its work, then it interrupts what is left."""

import asyncio


class Shutdown:
    """State of the stop. Operations that wait look at it when they are cancelled; the server sets it."""

    def __init__(self, unready_seconds: float = 0) -> None:
        self.unready_seconds = unready_seconds
        """Seconds for which the server still takes requests after `leave`."""
        self.is_leaving = False
        """True once the server is not ready any more: load balancers should turn to others."""
        self.is_draining = False
        """True once no new work is begun."""
        self.is_interrupting = False
        """True once what still runs is cancelled: its callers get an error, and may retry."""
        self._began_at = 0.0

    def leave(self) -> None:
        """Begin to be not ready."""
        self.is_leaving = True

    def drain(self) -> None:
        """Begin to finish the work."""
        self.leave()
        if not self.is_draining:
            self.is_draining, self._began_at = True, asyncio.get_running_loop().time()

    def interrupt(self) -> None:
        """Declare that the tasks of requests are cancelled now."""
        self.drain()
        self.is_interrupting = True

    def take_cancellation(self) -> bool:
        """Return True if the cancellation of this task is an interruption, and withdraw it then.

        Call it where a CancelledError was caught; raise that again if this is False.
        """
        task = asyncio.current_task()
        if not self.is_interrupting or task is None:
            return False
        task.uncancel()
        return True

    def rest_of(self, seconds: float) -> float:
        """Return what is left of `seconds`, which count from the begin of the stop."""
        if not self.is_draining:
            return seconds
        return max(0.0, seconds - (asyncio.get_running_loop().time() - self._began_at))
