"""The promise of a store: jobs and their moves, people and their tokens, models, and news of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from signoff.core.access import Role, Token, TokenKind, User
from signoff.core.delivery import Delivery, DeliveryKind, Outcome
from signoff.core.job import Decision, Event, Job, Status
from signoff.core.target import Model

Topic = Literal["job", "due", "delivery", "models", "people", "any"]
Listener = Callable[[Topic, str], None]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One move asked of the store: the verb, who asks, what its guards compare with, what it changes.

    `changes` are columns of the job; times are given in `after_seconds`, from the database's now. `to` is needed only
    where a verb has more than one target status. `decision` is recorded for good; `note` is kept with the event alone.
    """

    verb: str
    actor: str
    to: Status | None = None
    lease: str | None = None
    round: int | None = None
    reviewer: str | None = None
    changes: Mapping[str, Any] = {}
    after_seconds: Mapping[str, float] = {}
    decision: Decision | None = None
    note: Mapping[str, Any] = {}


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list. `user_id` None means everybody's; `after_id` is a cursor (ids are ordered by time)."""

    user_id: int | None = None
    status: Status | None = None
    fingerprint: str | None = None
    after_id: str | None = None
    offset: int = 0
    limit: int = 50
    newest_first: bool = False


class Jobs(Protocol):
    """Jobs. Every change is one transaction: the guarded update, its event, its decision, its delivery."""

    async def insert(self, job: Job, *, actor: str, due_seconds: float = 0, lease_seconds: float | None = None) -> Job:
        """The new job, committed, with the database's times; leased at once when `lease_seconds` is given.
        Where an own id or an idempotency key of the same user stands already, the job that stands there instead.
        """
        ...

    async def insert_ended(self, job: Job, *, actor: str, verbs: Sequence[str]) -> asyncio.Future[Job]:
        """A job that has run its course before it was ever written: one row, one event for all of `verbs`.
        Waits only while too many writes wait already; the future is done when it is committed, for which it waits as
        long as the database is away. Raises Overloaded when there is no room for it.
        """
        ...

    async def move(self, job_id: str, *steps: Step) -> Job:
        """The job after all `steps`, made in one transaction. Raises Stale if any guard fails, JobNotFound."""
        ...

    async def claim(self, *, actor: str, lease: str, limit: int, lease_seconds: float) -> list[Job]:
        """Up to `limit` due jobs of the later lane, leased: by priority, then age."""
        ...

    async def renew(self, leases: Mapping[str, str], lease_seconds: float) -> set[str]:
        """Extends each lease (job id → token) that still stands, and says which ones do."""
        ...

    async def get(self, job_id: str) -> Job | None: ...
    async def called(self, user_id: int, own_id: str) -> Job | None:
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

    async def settle(self, delivery_id: str, lease: str, outcome: Outcome) -> bool:
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
    async def put_user(self, email: str, role: Role, password_hash: str | None = None) -> User:
        """The user, made or changed. A password of None leaves the old one."""
        ...

    async def add_token(
        self, user_id: int, digest: str, *, kind: TokenKind, name: str, role: Role, seconds: float | None = None
    ) -> Token: ...
    async def token(self, digest: str) -> tuple[Token, User] | None:
        """The live token with this digest and its live user: switched on, not expired by the database's clock."""
        ...

    async def end_token(self, digest: str) -> bool:
        """Switches a token off; whether it was on. Exactly one of several callers gets True."""
        ...


class Catalog(Protocol):
    """Registered models, and the sealed keys of their upstreams."""

    async def models(self) -> list[Model]: ...
    async def put_model(self, model: Model) -> None: ...
    async def drop_model(self, name: str) -> bool: ...
    async def add_key(self, user_id: int | None, name: str, sealed: bytes) -> int: ...
    async def key(self, key_id: int) -> bytes | None: ...


class Store(Protocol):
    """Where everything lives."""

    @property
    def jobs(self) -> Jobs: ...
    @property
    def deliveries(self) -> Deliveries: ...
    @property
    def people(self) -> People: ...
    @property
    def catalog(self) -> Catalog: ...

    async def start(self) -> None:
        """Opens it. Raises SchemaOutdated if it must be migrated first."""
        ...

    async def migrate(self) -> None: ...
    async def ready(self) -> bool:
        """Whether it answers now."""
        ...

    async def versions(self) -> dict[str, int]:
        """A number each for models and people that grows whenever they change."""
        ...

    def listen(self, listener: Listener) -> None:
        """Calls `listener` with (kind, id) for what changes, here or in another process. Lossy: news, not truth.
        `due` is a job that waits for a worker, `delivery` the kind of one that is due, `any` anything anywhere.
        """
        ...

    async def close(self) -> None: ...
