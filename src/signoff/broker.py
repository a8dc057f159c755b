"""The promise of a broker: a doorbell that carries ids. Losing it costs time and never a job."""

from __future__ import annotations

from typing import Protocol


class Broker(Protocol):
    """Rings for jobs that are due, and lets a worker wait for the bell."""

    async def start(self) -> None: ...
    def ring(self, job_id: str, priority: int) -> None:
        """Says that a job is due. Never raises and never waits."""
        ...

    async def heard(self, seconds: float) -> bool:
        """Waits until the bell rings, at most `seconds`; whether it rang."""
        ...

    async def close(self) -> None: ...
