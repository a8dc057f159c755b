"""Interface of a broker: wake-ups that carry job ids. Losing one costs time, and never a job."""

from typing import Protocol


class Broker(Protocol):
    """A channel for wake-ups between the processes that accept jobs and the workers that claim them.

    A wake-up only says that something is due. The worker that receives it claims jobs from the store, so a lost,
    repeated or late wake-up is harmless: workers also look for due jobs at a fixed interval.
    """

    @property
    def is_connected(self) -> bool:
        """True while wake-ups can be sent, and received by the workers of this process."""
        ...

    async def start(self) -> None:
        """Start to connect in the background. Do not wait for the connection, and do not fail without one."""
        ...

    def notify(self, job_id: str, priority: int) -> None:
        """Send a wake-up for a job that is due; it wakes one worker, in this process or in another one.

        `priority` is the job's (a greater number is more urgent); an adapter may ignore it. Never block, and never
        raise: a wake-up that cannot be sent now is sent later, or dropped if too many are waiting.
        """
        ...

    def wake_local(self) -> None:
        """Wake a worker of this process, because the store reports that something is due.

        It replaces wake-ups from other processes that may not arrive here. An adapter whose wake-ups do arrive does
        nothing. Never block, and never raise.
        """
        ...

    async def poll(self, seconds: float) -> bool:
        """Wait up to `seconds` for a wake-up. Return True if one came, and False after the time is over.

        The next call confirms that the jobs of this wake-up have been claimed. An adapter that keeps wake-ups outside
        of the process acknowledges one only then, so that another worker receives it if this process dies before.
        """
        ...

    async def close(self) -> None:
        """Send the wake-ups that are still waiting, if that is possible within a short time, and disconnect."""
        ...
