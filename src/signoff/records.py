"""Interfaces of the store for records of jobs: steps of runs, deliveries, departures, receipts, and erasures."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from signoff.core.backlog import DeliveryDepth
from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.job import FunctionCall, Job
from signoff.core.reviews.figures import FigureQuery, FigureRow, FigureTotals
from signoff.core.reviews.receipt import Head, KeyReceipt
from signoff.core.usage import UsageTotals


class Runs(Protocol):
    """Records of the runs of pipelines: the jobs that are their steps, and their calls of functions.

    A run's id, its round and a node of its tree identify one step or one call; there is never a second one.
    """

    async def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        """Insert a step of a run and return it, leased with its own token `step.lease` for `lease_seconds`.

        A step that has ended already, because the cache had its answer, is inserted as a `hit` without a lease. If the
        run has a step for this round and node, return that one and insert nothing.

        Raises Stale if the run is not in the status `bot` with the lease `run_lease` any more.
        """
        ...

    async def steps(self, run_id: str, run_round: int | None = None) -> list[Job]:
        """Return the steps of one round of a run, or of all rounds, ordered by id. A pipeline's size bounds them."""
        ...

    async def add_call(self, call: FunctionCall, *, run_lease: str) -> FunctionCall:
        """Record a call of a function and return it, or the one that is recorded for this round and node.

        Raises Stale if the run is not in the status `bot` with the lease `run_lease` any more.
        """
        ...

    async def calls(self, run_id: str, run_round: int | None = None) -> list[FunctionCall]:
        """Return the recorded calls of one round of a run, or of all rounds, ordered by the time when they began."""
        ...

    async def size_bytes(self, run_id: str) -> int:
        """Return the bytes of all requests and answers of the outermost run of `run_id`, in its current rounds."""
        ...

    async def costs(self, run_ids: Sequence[str]) -> dict[str, UsageTotals]:
        """Return the sums of tokens and cost of the steps of each run, of all rounds and below its steps.

        A run without steps has no sums. Only the tokens, the cost, `jobs` and `unpriced` are filled in.
        """
        ...

    async def insert_retry(self, run: Job, steps: Sequence[Job], calls: Sequence[FunctionCall], *, actor: str) -> Job:
        """Insert a run together with steps and calls that it inherits from an earlier one, in one transaction.

        Steps that have not ended are due at once, like the run itself. Return the run.
        """
        ...

    async def stalled(self, limit: int) -> list[Job]:
        """Return up to `limit` parked runs whose steps of the current round have all ended, so that none wakes them."""
        ...


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
        """Claim up to `limit` due deliveries of a kind, and return them, those that are due longest first.

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

    async def depths(self, *, at_most: int) -> list[DeliveryDepth]:
        """Return the deliveries that are neither received nor given up, by kind; count up to `at_most` of each."""
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
    """Callers of held jobs: those who left before the answer came, and those who wait, under a lease.

    The next equal request of a caller who left gets the job.
    """

    async def add(self, job: Job) -> None:
        """Record that the caller of `job` has left. Departures of more than a day ago are deleted meanwhile."""
        ...

    async def renew(self, jobs: Sequence[Job], lease_seconds: float) -> None:
        """Record that the callers of `jobs` wait. They count as gone after `lease_seconds`, unless renewed before."""
        ...

    async def remove(self, job_id: str) -> None:
        """Delete the record of a job, whose caller has the answer."""
        ...

    async def left_at(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Return the times at which callers left, in microseconds since 1970, by job; callers who wait are left out."""
        ...

    async def take(self, job: Job, *, ended_within_seconds: float) -> Job | None:
        """Return the newest job with the request of `job` whose caller has left, and delete its departure.

        The two have the same user, token and fingerprint, and that job has not ended, or ended within the last
        `ended_within_seconds`. Of several concurrent calls, one gets it. Return None if there is none, after one
        indexed read.
        """
        ...


ERASED_EMAIL = "erased-{}@signoff.invalid"
"""Email of an erased user, with the id of the user in place of `{}`."""


class PendingErasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that is not finished."""

    user_id: int
    """Id of the user who is erased."""
    age_seconds: float
    """Seconds since it was requested."""


class Erasures(Protocol):
    """Erasures of users, which any process may continue."""

    async def begin(self, user_id: int) -> None:
        """Record the erasure of a disabled user, and delete what they have beside their jobs.

        These are their tokens, password, upstream keys, limits, and the prompts and pipelines that are not shared. If
        they were erased before, begin again. Raises Conflict if the user is active.
        """
        ...

    async def pending(self, limit: int) -> list[PendingErasure]:
        """Return up to `limit` erasures that are not finished."""
        ...

    async def close_audits(self, job_ids: Sequence[str]) -> None:
        """Close the audits and planted items that these jobs are, so that cancelling them leaves no copy for reviewers.

        An audit without a verdict counts as wrong in its error budget, as nobody can judge it any more. The digests of
        the answers are deleted.
        """
        ...

    async def delete_jobs(self, user_id: int, job_ids: Sequence[str]) -> int:
        """Delete those of the jobs that belong to the user and have ended, with all records of them.

        Cached answers and log lines that name them are deleted too; receipts and sums of usage stay. Return the number
        of deleted jobs.
        """
        ...

    async def finish(self, user_id: int, *, is_final: bool) -> None:
        """Replace the email of the user by `ERASED_EMAIL`, and end the erasure if `is_final`."""
        ...


class ReceiptFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Receipts to list, in the order of their numbers; the conditions are joined by AND."""

    after_seq: int = 0
    """Cursor: the number of the last receipt of the previous page."""
    until_seq: int | None = None
    """Number of the last receipt to list; None for no bound."""
    job_id: str | None = None
    """Job; None for all receipts."""
    since: int | None = None
    """Earliest time, in microseconds since 1970, UTC; None for no bound."""
    until: int | None = None
    """Time before which the receipts were made, in microseconds since 1970, UTC; None for no bound."""
    limit: int = 100
    """Maximum number of receipts."""


class StoredReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt as it is stored."""

    seq: int
    """Number of the receipt."""
    line: bytes
    """Its line, with the signature; see `core.reviews.receipt`."""
    salt: bytes | None
    """Salt of its digests; None if it has none, or if the contents of its job were deleted."""


class Receipts(Protocol):
    """Receipts of the decisions that took effect, and sums over them.

    The transaction of `approve`, `redo`, `reject`, and of an `expire` that ends the review, appends a receipt to the
    chain, one process at a time. Receipts are never changed, and deleted only after they were archived. The first use
    creates the signing key.
    """

    async def page(self, filters: ReceiptFilter) -> list[StoredReceipt]:
        """Return a page of receipts, ordered by number."""
        ...

    async def public_key(self) -> bytes:
        """Return the public key that signs the next receipt, as 32 bytes."""
        ...

    async def head(self) -> Head:
        """Return a signed statement of the number and the hash of the last receipt."""
        ...

    async def rotate(self, *, is_lost: bool = False) -> KeyReceipt:
        """Replace the signing key, and delete the old private key. Return the receipt that announces the new one.

        The old key signs it, or with `is_lost` the new one. Raises Unreadable if the old key is needed, and the vault
        cannot decrypt it.
        """
        ...

    async def archive(self, until_seq: int) -> None:
        """Declare the receipts up to `until_seq` as archived, in a receipt that anchors the others.

        Do nothing if they are declared already. Raises Conflict if there are not that many receipts.
        """
        ...

    async def delete_archived(self, limit: int) -> int:
        """Delete up to `limit` receipts that are declared as archived, and return their number."""
        ...

    async def figures(self, query: FigureQuery) -> tuple[list[FigureRow], FigureTotals]:
        """Return a page of sums over the decisions that took effect, also of archived ones, and the total of all."""
        ...
