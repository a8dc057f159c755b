"""The promise of a broker: a doorbell that carries ids. Losing it costs time and never a job."""

from __future__ import annotations

from typing import Protocol


class Broker(Protocol):
    """Rings for jobs that are due, and lets a worker wait for the bell. Whoever hears it claims from the store."""

    @property
    def is_connected(self) -> bool:
        """Whether bells get through right now."""
        ...

    async def start(self) -> None:
        """Begins to connect. Neither waits for that nor fails."""
        ...

    def notify(self, job_id: str, priority: int) -> None:
        """Says that a job is due; one worker, in this process or another, hears it. Never raises and never waits."""
        ...

    def wake_local(self) -> None:
        """Passes on that the store has news of something due, where the bells themselves may not get through."""
        ...

    async def poll(self, seconds: float) -> bool:
        """Waits until the bell rings, at most `seconds`; whether it rang. What was heard before is claimed by now."""
        ...

    async def close(self) -> None:
        """Rings what has not been rung yet, if that is possible soon."""
        ...
