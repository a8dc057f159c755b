"""Interfaces of the store for what belongs to single jobs: their deliveries, and the departures of their callers."""

from collections.abc import Mapping
from typing import Protocol

from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.job import Job


class Deliveries(Protocol):
    """Deliveries. The transaction that ends a job creates them, unless the job was cancelled."""

    async def claim(
        self,
        kind: DeliveryKind,
        *,
        lease: str,
        limit: int,
        limit_per_host: int,
        busy: Mapping[str, int],
        lease_seconds: float,
    ) -> list[Delivery]:
        """Claim up to `limit` due deliveries of a kind, and return them from the longest due on.

        Each gets the lease token `lease` for `lease_seconds`, and its attempt is incremented. Concurrent calls never
        claim the same delivery; one whose lease has run out is claimed again. For each host no more are claimed than
        `limit_per_host` minus the number that `busy` has for it: deliveries that the caller is sending.
        """
        ...

    async def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        """Record the outcome of an attempt, and end its lease.

        An outcome that does not count gives the attempt back. Return False, and change nothing, if the delivery does
        not have this lease any more.
        """
        ...

    async def get(self, delivery_id: str) -> Delivery | None:
        """Return the delivery, or None if there is none with this id."""
        ...

    async def of_job(self, job_id: str) -> list[Delivery]:
        """Return the deliveries of a job, ordered by id."""
        ...

    async def failed(self, limit: int) -> list[Delivery]:
        """Return up to `limit` deliveries in the state `failed`, by descending id: those of the newest jobs first."""
        ...

    async def redeliver(self, delivery_id: str) -> Delivery:
        """Make a delivery due at once, in whatever state it is, with all of its attempts before it. Return it.

        Raises NotFound, and Stale while the delivery is being sent.
        """
        ...


class Departures(Protocol):
    """Jobs whose waiting caller left before the answer came, so that the caller's next equal request gets it."""

    async def add(self, job: Job) -> None:
        """Record that the caller of `job` has left. Departures of more than a day ago are deleted meanwhile."""
        ...

    async def take(self, job: Job, *, ended_within_seconds: float) -> Job | None:
        """Return the newest job that a caller with the request of `job` has left, and delete its departure.

        It is a job of the same user, token and fingerprint that has not ended, or ended within the last
        `ended_within_seconds`. Of several concurrent calls, one gets it. Return None if there is none; then the call
        costs one indexed read.
        """
        ...
