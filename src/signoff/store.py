"""The promise of a store: jobs and their moves, people, models, compositions, limits, usage, and news of all that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from signoff.catalog import Catalog, ModelLogs, Secrets, Streams
from signoff.core.access import Role, Token, TokenKind, User
from signoff.core.cache import CacheRule
from signoff.core.delivery import Delivery, DeliveryKind, DeliveryOutcome
from signoff.core.filters import JobFilter, LibraryFilter
from signoff.core.job import Decision, Event, FunctionCall, Job, Status
from signoff.core.limits import Counter, Denial, Limit, Reservation, ReservationRequest
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.core.pipelines.function import Function
from signoff.core.price import Price
from signoff.core.usage import UsageQuery, UsageRow, UsageTotals

CachedTopic = Literal["models", "people", "prices", "limits", "cache", "compositions", "functions", "streams"]
Topic = Literal["job", "due", "delivery", CachedTopic, "any"]
InitialVerb = Literal["submit", "hit", "refuse"]
Listener = Callable[[Topic, str], None]


class TransitionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One move asked of the store: the verb, who asks, what its guards compare with, what it changes.

    `changes` are columns of the job; times are given in `after_seconds`, from the database's now. `to` is needed only
    where a verb has more than one target status. `decision` is recorded for good; `note` is kept with the event alone.
    `settled` is how many steps of a run its mover saw settled.
    """

    verb: str
    actor: str
    to: Status | None = None
    lease: str | None = None
    round: int | None = None
    reviewer: str | None = None
    settled_steps: int | None = None
    changes: Mapping[str, Any] = {}
    after_seconds: Mapping[str, float] = {}
    decision: Decision | None = None
    note: Mapping[str, Any] = {}


class Jobs(Protocol):
    """Jobs. Every change is one transaction: the guarded update, its event, its decision, its delivery.

    With a job that ends in `fail` all that goes on below it is cancelled; the end of a run's step wakes the run.
    """

    async def insert(
        self,
        job: Job,
        *,
        actor: str,
        verb: InitialVerb = "submit",
        due_seconds: float = 0,
        lease_seconds: float | None = None,
    ) -> Job:
        """The new job, committed, with the database's times; leased at once when `lease_seconds` is given. A `hit`,
        and what is refused, has ended already. Where an own id or an idempotency key of the same user stands already,
        the job that stands there.
        """
        ...

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> asyncio.Future[Job]:
        """A job that has run its course before it was ever written: one row, one event for all of `verbs`.
        Waits only while too many writes wait already; the future is done when it is committed, for which it waits as
        long as the database is away. Raises Overloaded when there is no room for it.
        """
        ...

    async def transition(self, job_id: str, *steps: TransitionRequest) -> Job:
        """The job after all `steps`, made in one transaction. Raises Stale if any guard fails, JobNotFound."""
        ...

    async def claim(
        self, *, actor: str, lease: str, limit: int, lease_seconds: float, full: Sequence[str] = ()
    ) -> list[Job]:
        """Up to `limit` due jobs of the later lane, leased: by priority, then age; none for the models in `full`."""
        ...

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """Extends each lease (job id → token) that still stands, and says which ones do."""
        ...

    async def get(self, job_id: str) -> Job | None: ...
    async def by_client_id(self, user_id: int, client_id: str) -> Job | None:
        """The job that a user calls so."""
        ...

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[Status, int]]:
        """Status and seq of those that exist."""
        ...

    async def list(self, which: JobFilter) -> list[Job]: ...
    async def count(self, which: JobFilter) -> int: ...
    async def events(self, job_id: str) -> list[Event]: ...
    async def lapsed(self, limit: int) -> list[Job]:
        """Jobs whose lease has run out."""
        ...

    async def released(self, limit: int) -> list[Job]:
        """Held jobs whose verdict is due to take effect."""
        ...

    async def overdue(self, limit: int) -> list[Job]:
        """Held jobs that nobody decided in time, and whose policy says what happens then."""
        ...

    async def purge(self, older_than_seconds: float, limit: int) -> int:
        """Forgets up to `limit` jobs that ended so long ago, with all that is kept of them; how many."""
        ...


class Runs(Protocol):
    """What belongs to the runs of pipelines: the jobs that are their steps, and the calls of functions."""

    async def add_step(self, step: Job, *, actor: str, run_lease: str, lease_seconds: float) -> Job:
        """The new step, leased, unless it is a `hit`; or the one that stands at its place: then `step` leaves no trace.
        Raises Stale once the run is not held under `run_lease` any more.
        """
        ...

    async def steps(self, run_id: str, run_round: int | None = None) -> list[Job]:
        """The steps of one round of a run, or of every round, the oldest first. A pipeline's size bounds them."""
        ...

    async def add_call(self, call: FunctionCall, *, run_lease: str) -> FunctionCall:
        """The call, kept; or the one that stands at its place. Raises Stale as `add_step` does."""
        ...

    async def calls(self, run_id: str, run_round: int | None = None) -> list[FunctionCall]: ...
    async def insert_again(self, run: Job, steps: Sequence[Job], calls: Sequence[FunctionCall], *, actor: str) -> Job:
        """A new run, with what it need not ask again: all of it at once. Steps that have not ended yet are due."""
        ...

    async def stalled(self, limit: int) -> list[Job]:
        """Parked runs of which no step goes on: nobody else will wake them."""
        ...


class Deliveries(Protocol):
    """Deliveries. A job's end makes them, in the same transaction, unless it was cancelled."""

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
        """Up to `limit` due ones of that kind, leased, each with an attempt more: the longest due first, and not more
        to one host than `limit_per_host`, of which `busy` says how many are in use.
        """
        ...

    async def settle(self, delivery_id: str, lease: str, outcome: DeliveryOutcome) -> bool:
        """Writes down what came of an attempt, and ends its lease; False, and nothing changes, if that is gone."""
        ...

    async def get(self, delivery_id: str) -> Delivery | None: ...
    async def of_job(self, job_id: str) -> list[Delivery]: ...
    async def failed(self, limit: int) -> list[Delivery]:
        """Those that were given up, the latest first."""
        ...

    async def resend(self, delivery_id: str) -> Delivery:
        """The delivery, due at once, and from its first attempt on. Raises NotFound, and Stale while it is sent."""
        ...


class People(Protocol):
    """Users, and the tokens that stand for them."""

    async def user(self, email: str) -> User | None: ...
    async def users(self) -> list[User]: ...
    async def owner(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        """A user and one of their tokens, live or not; None for what there is not."""
        ...

    async def put_user(self, email: str, role: Role, password_hash: str | None = None) -> User:
        """The user, made or changed. A password of None leaves the old one."""
        ...

    async def add_token(  # noqa: PLR0913 -- each is a side of a token
        self,
        user_id: int,
        digest: str,
        *,
        kind: TokenKind,
        name: str,
        role: Role,
        seconds: float | None = None,
        cache: CacheRule | None = None,
        key_id: int | None = None,
    ) -> Token: ...
    async def token(self, digest: str) -> tuple[Token, User] | None:
        """The live token with this digest and its live user: switched on, not expired by the database's clock."""
        ...

    async def end_token(self, digest: str) -> bool:
        """Switches a token off; whether it was on. Exactly one of several callers gets True."""
        ...


class UsageRecords(Protocol):
    """What models cost, and what was used of them."""

    async def prices(self) -> list[Price]: ...
    async def put_price(self, price: Price) -> None:
        """Adds a price; one of the same model and time is replaced. What ended before keeps its cost."""
        ...

    async def drop_price(self, model: str, valid_from: int) -> bool: ...
    async def record(self, job: Job) -> None:
        """Counts the tokens, the cost and the times of `job` with the status `stale`, beside those in its row."""
        ...

    async def report(self, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
        """A page of lines, in the order of their dimensions, and the sum of all; both of one moment. Jobs that are
        kept no longer count too.
        """
        ...


class SyncResult(msgspec.Struct, frozen=True):
    """The names that a sync of functions has registered and dropped, and those it left out: a prompt or a pipeline
    is called so.
    """

    created: tuple[str, ...]
    deleted: tuple[str, ...]
    conflicts: tuple[str, ...] = ()


class Library(Protocol):
    """Prompts and pipelines, in numbered versions that labels name; and the functions that are registered.

    A name stands for one of them in the whole deployment.
    """

    async def put(self, composed: LibraryItem, *, label: str | None = PRODUCTION) -> LibraryItem:
        """The new version, committed, with its number: of the one with that id, or with an id of 0 the first of a new
        one. `label` moves to it; a first version is the production one too. Raises NameTaken, ComposedNotFound.
        """
        ...

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        """The one of that name or id, in the version of that label or number."""
        ...

    async def list(self, which: LibraryFilter) -> Sequence[LibraryItem]:
        """Production versions."""
        ...

    async def versions(self, composed_id: int, *, before: int | None = None, limit: int = 50) -> Sequence[LibraryItem]:
        """The newest first."""
        ...

    async def label(self, composed_id: int, label: str, version: int | None) -> bool:
        """Moves the label to that version, or with None takes it away; whether there is such a version, or label."""
        ...

    async def share(self, composed_id: int, *, shared: bool) -> bool: ...
    async def drop(self, composed_id: int) -> bool:
        """Forgets all versions."""
        ...

    async def functions(self) -> Sequence[Function]:
        """Those that are registered, by name."""
        ...

    async def sync(self, found: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        """Registers what was found, in its new form too, and drops all else but what is of the modules in `unread`."""
        ...


class Quotas(Protocol):
    """Limits, and what was used of them: exact across processes, by the store's clock."""

    async def limits(self) -> list[Limit]: ...
    async def put_limit(self, limit: Limit) -> None: ...
    async def drop_limit(self, name: str) -> bool: ...
    async def reserve(self, request: ReservationRequest) -> Reservation | Denial:
        """Room under all limits of the wish, or none under any. Raises Overloaded."""
        ...

    async def settle(self, reservation: Reservation, *, tokens: int = 0, cost: int = 0, asked: bool = True) -> None:
        """Counts what was used instead of what was reserved; nothing where no model was `asked`.

        Raises Overloaded when it was not counted: to ask again counts it once.
        """
        ...

    async def renew(self, reservations: Sequence[Reservation], lease_seconds: float) -> None:
        """Keeps what is reserved for requests that are under way."""
        ...

    async def counters(self, names: Sequence[str]) -> dict[str, Counter]:
        """What counts now, of those that were ever used."""
        ...


class Store(Protocol):
    """Where everything lives."""

    @property
    def jobs(self) -> Jobs: ...
    @property
    def runs(self) -> Runs: ...
    @property
    def deliveries(self) -> Deliveries: ...
    @property
    def people(self) -> People: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def usage(self) -> UsageRecords: ...
    @property
    def library(self) -> Library: ...
    @property
    def quotas(self) -> Quotas: ...
    @property
    def streams(self) -> Streams: ...
    @property
    def secrets(self) -> Secrets: ...
    @property
    def model_logs(self) -> ModelLogs: ...

    async def start(self) -> None:
        """Opens it. Raises SchemaOutdated if it must be migrated first."""
        ...

    async def migrate(self) -> None: ...
    async def ready(self) -> bool:
        """Whether it answers now."""
        ...

    async def versions(self) -> dict[str, int]:
        """A number for each thing that processes keep a copy of; it grows whenever that changes."""
        ...

    async def changed(self, topic: Topic) -> None:
        """Tells every process, whenever it hears of it, that `topic` has changed."""
        ...

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with (kind, id) for what changes, here or in another process. Lossy: news, not truth.
        `due` is a job that waits for a worker, `delivery` the kind of one that is due, `any` anything anywhere.
        """
        ...

    async def close(self) -> None: ...
