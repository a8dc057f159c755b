"""Clocks of a simulated process: they may be wrong, fast or slow, and the wall clock may jump."""

from __future__ import annotations

from random import Random

EPOCH_SECONDS = 1_790_000_000
SECOND_US = 1_000_000


class Clock:
    """A monotonic clock that runs at its own rate, and a wall clock that can be set."""

    def __init__(self, random_float: Random, *, is_true: bool = False) -> None:
        self._rate = 1.0 if is_true else random_float.choice([1.0, 1.0, 0.8, 1.25, 1.001])
        self._offset = 0.0 if is_true else random_float.uniform(0, 1e5)
        self._ahead = (
            0.0
            if is_true
            else random_float.choice([0.0, random_float.uniform(-1, 1), random_float.uniform(-3600, 3600)])
        )

    def monotonic(self, now: float) -> float:
        """Return the monotonic time in seconds at the true time `now`."""
        return self._offset + self._rate * now

    def true_time(self, monotonic: float) -> float:
        """Return the true time in seconds at which this clock shows `monotonic`."""
        return (monotonic - self._offset) / self._rate

    def wall(self, now: float) -> int:
        """Return the wall time in microseconds since 1970 at the true time `now`."""
        return round((EPOCH_SECONDS + self._ahead + self._rate * now) * SECOND_US)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward by `seconds`, or back if they are negative."""
        self._ahead += seconds
