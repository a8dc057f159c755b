"""The stop of this process: first it finishes its work, then it interrupts what is left."""

import asyncio


class Shutdown:
    """State of the stop. Operations that wait look at it when they are cancelled; the server sets it."""

    def __init__(self, unready_seconds: float = 0) -> None:
        self.unready_seconds = unready_seconds
        """Seconds for which the server still takes requests after `mark_unready`."""
        self.is_unready = False
        """True once load balancers should send requests to other servers."""
        self.is_draining = False
        """True once no new work is begun."""
        self.is_interrupting = False
        """True once what still runs is cancelled: its callers get an error, and may retry."""
        self._began_at = 0.0

    def mark_unready(self) -> None:
        """Let load balancers know that this server will stop; it still takes requests."""
        self.is_unready = True

    def drain(self) -> None:
        """Take no new work, and finish what has begun."""
        self.mark_unready()
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

    def seconds_left(self, seconds: float) -> float:
        """Return what is left of `seconds` that count from `drain`; all of them before it."""
        if not self.is_draining:
            return seconds
        return max(0.0, seconds - (asyncio.get_running_loop().time() - self._began_at))
