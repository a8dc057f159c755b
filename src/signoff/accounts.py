"""Interfaces of the store for people and their tokens, prices and usage, limits, and the audit log.

Each change of the configuration adds an entry to the audit log, in its own transaction. A method reads the actor
from `infra.actor` when it is called.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from signoff.core.access import Role, Token, TokenKind, User
from signoff.core.audit import AuditEntry, AuditFilter
from signoff.core.cache import CacheRule
from signoff.core.counters import Counter
from signoff.core.job import Job
from signoff.core.latency import LatencyQuery, LatencyRow
from signoff.core.limits import Denial, Limit, Reservation, ReservationRequest
from signoff.core.oidc import ProviderAccount, ProviderSettings
from signoff.core.price import Price
from signoff.core.refusals import RefusalCount
from signoff.core.saved_views import SavedView
from signoff.core.sign_in import SignInDenial, SignInLimit
from signoff.core.usage import UsageQuery, UsageRow, UsageTotals


class People(Protocol):
    """Users and their tokens. Each change increments the version of the topic `people` (see `Store.versions`)."""

    async def user(self, email: str) -> User | None:
        """Return the user with this e-mail address, active or not; upper and lower case do not matter."""
        ...

    async def users(self, *, after_id: int = 0, limit: int | None = None) -> list[User]:
        """Return the users with ids above `after_id`, ordered by id; at most `limit`, or all if that is None."""
        ...

    async def user_by_id(self, user_id: int) -> User | None:
        """Return the user with this id, active or not."""
        ...

    async def user_with_token(self, user_id: int, token_id: int) -> tuple[User | None, Token | None]:
        """Return a user and one of that user's tokens, active or not; None for each that does not exist."""
        ...

    async def has_other_reviewer(self, user_id: int) -> bool:
        """Return True if an active reviewer or admin other than this user exists."""
        ...

    async def put_user(
        self, email: str, role: Role, password_hash: str | None = None, *, must_be_new: bool = False
    ) -> User:
        """Create an active user, or change the one with this e-mail address. Return the user.

        The address is stored in lower case. A `password_hash` of None keeps the present password. Another password,
        and a role with fewer rights, end all sessions and sign-in links of the user.
        Raises Conflict if no active admin would be left, or if there is such a user and they `must_be_new`.
        """
        ...

    async def change_user(
        self,
        user_id: int,
        *,
        role: Role | None = None,
        active: bool | None = None,
        password_hash: str | None = None,
    ) -> User | None:
        """Change what is not None, and return the user; None if there is no such user.

        Another password, a role with fewer rights and a deactivation end all sessions and sign-in links of the user.
        Raises Conflict if no active admin would be left.
        """
        ...

    async def user_of_account(self, issuer: str, subject: str) -> User | None:
        """Return the user to whom an account of an OpenID Connect provider is bound, active or not."""
        ...

    async def sign_in(self, account: ProviderAccount, settings: ProviderSettings) -> User:
        """Return the user of an account that signs in: create or bind them, and change their role, as `core.oidc` says.

        A role with fewer rights ends all sessions and sign-in links of the user.
        Raises SignInRefused, and Conflict if no active admin would be left; then nothing is changed.
        """
        ...

    async def bind_account(self, user_id: int, issuer: str, subject: str) -> None:
        """Bind an account to a user. Raises Conflict if the account, or the user at this issuer, is bound already."""
        ...

    async def unbind_accounts(self, user_id: int) -> int:
        """Unbind all accounts of a user, and return their number; if there was one, end the sessions of the user."""
        ...

    async def replace_password_hash(self, user_id: int, old: str, new: str) -> None:
        """Store another hash of the same password, if the present one is `old`. Sessions go on."""
        ...

    async def add_token(  # noqa: PLR0913 -- one parameter for each attribute of a token
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
        password_hash: str | None = None,
    ) -> Token:
        """Create an active token of a user, and return it.

        `digest` is the SHA-256 of the token. It expires after `seconds`, or never if that is None. `cache` and `key_id`
        are the cache rule and the upstream key for requests that use the token. A new sign-in link ends the former
        links of the user. Raises Conflict for a session if the user does not have this `password_hash` any more, or is
        disabled, so that a change that ends all sessions does not miss one that begins at the same time; and for an
        API token if the user has as many that are alive as `core.access` allows.
        """
        ...

    async def token(self, digest: str) -> tuple[Token, User] | None:
        """Return the token with this digest and its user; None unless both are active. Raises TokenExpired."""
        ...

    async def tokens(
        self, kind: TokenKind, user_id: int | None, *, after_id: int = 0, limit: int = 50
    ) -> list[tuple[Token, User]]:
        """Return the active tokens of this kind with ids above `after_id` and their users, ordered by id.

        `user_id` selects those of one user. Sessions and links that have expired are left out.
        """
        ...

    async def end_token(self, digest: str) -> bool:
        """Deactivate a token. Return True to exactly one caller, and False if there is no such active token."""
        ...

    async def revoke_token(self, kind: TokenKind, token_id: int, user_id: int | None) -> bool:
        """Deactivate the token of this kind and id, of the user `user_id` unless that is None, as `end_token` does."""
        ...

    async def end_sessions(self, user_id: int) -> int:
        """End all sessions and sign-in links of a user, and return their number."""
        ...

    async def mark_used(self, times: Mapping[int, int]) -> None:
        """Record when tokens were last used: microseconds since 1970 by token id. An earlier time changes nothing.

        This is no change of the topic `people`, because no copy of the rows depends on it.
        """
        ...


class SignIns(Protocol):
    """Failed sign-ins by e-mail address and by client; see `core.sign_in`."""

    async def begin(self, limits: Sequence[SignInLimit]) -> SignInDenial | None:
        """Count an attempt under all limits; or count nothing and return the denial with the longest wait.

        Concurrent attempts, also in other processes, never exceed a limit together.
        """
        ...

    async def succeed(self, email: SignInLimit, client: SignInLimit) -> None:
        """Forget the failures of an e-mail address that has signed in, and take one attempt back from its client."""
        ...


class UsageRecords(Protocol):
    """Prices of models, and the usage of all jobs."""

    async def prices(self) -> list[Price]:
        """Return all prices, ordered by model and by the time from which they are valid."""
        ...

    async def put_price(self, price: Price) -> None:
        """Add a price; replace the one of the same model and time. The cost of jobs that have ended does not change.

        This and `drop_price` increment the version of the topic `prices` (see `Store.versions`).
        """
        ...

    async def drop_price(self, model: str, valid_from: int) -> bool:
        """Delete a price. Return False if there is none of this model and time, in microseconds since 1970."""
        ...

    async def record(self, job: Job) -> None:
        """Add the tokens, cost and times in `job` to the usage of this hour, with the status `stale`.

        Use it for a call whose result could not be written into the row of its job. It does not count as another job.
        """
        ...

    async def report(self, query: UsageQuery) -> tuple[list[UsageRow], UsageTotals]:
        """Return a page of usage by the dimensions of `query`, in their order, and the totals of all pages.

        Both come from one snapshot. Jobs that were purged are included. Raises Overloaded if too many reports run.
        """
        ...

    async def latencies(self, query: LatencyQuery) -> list[LatencyRow]:
        """Return histograms of the latencies of jobs that have ended, the group with the most requests first.

        Jobs that were purged are included. Raises Overloaded if too many reports run.
        """
        ...


class Limits(Protocol):
    """Limits and their counters: exact across processes, by the store's clock."""

    async def all(self) -> list[Limit]:
        """Return all limits, ordered by name."""
        ...

    async def put_limit(self, limit: Limit) -> None:
        """Set a limit; replace the one that has the same name.

        This and `drop_limit` increment the version of the topic `limits` (see `Store.versions`).
        """
        ...

    async def drop_limit(self, name: str) -> bool:
        """Delete a limit. Return False if there is no such limit."""
        ...

    async def reserve(self, request: ReservationRequest) -> Reservation | Denial:
        """Reserve what a request may use, under all of its limits; or reserve nothing and return the reason.

        Concurrent calls, also in other processes, never exceed a limit together. Raises Overloaded if the counters
        could not be updated in time; then the request may still count until its lease, or its minute, ends.
        """
        ...

    async def settle(self, reservation: Reservation, *, tokens: int = 0, cost: int = 0, was_sent: bool = True) -> None:
        """Replace a reservation by what was used: `tokens`, and `cost` in nanodollars.

        With `was_sent` set to False no model was called, and the request itself does not count either. The call may
        take long: it returns when it is known that the usage was counted.

        Raises:
            Overloaded: The usage was not counted. Calling again counts it once.
        """
        ...

    async def renew(self, reservations: Sequence[Reservation], lease_seconds: float) -> None:
        """Extend reservations of requests in progress to `lease_seconds` from now; one that has ended is made again.

        Raises Overloaded.
        """
        ...

    async def refusals(self, since: int, *, user_id: int | None = None, limit: int = 50) -> list[RefusalCount]:
        """Return how often limits refused requests from the hour of `since` on, the most frequent refusals first.

        `since` is in microseconds since 1970; `user_id` selects those of one user; at most `limit` are returned.
        """
        ...

    async def counters(self, names: Sequence[str]) -> dict[str, Counter]:
        """Return the present counters by name, without what has expired; names that were never used are left out."""
        ...


class SavedViews(Protocol):
    """Filters of dashboard pages that users have saved under a name; see `core.saved_views`."""

    async def of_user(self, user_id: int, page: str) -> list[SavedView]:
        """Return the views that a user has saved of a page, ordered by name."""
        ...

    async def put(self, user_id: int, view: SavedView) -> None:
        """Save a view; replace the one of the same page and name. Raises Conflict beyond MAX_VIEWS of a page."""
        ...

    async def drop(self, user_id: int, page: str, name: str) -> bool:
        """Delete a view. Return False if there is none of this page and name."""
        ...


class Audit(Protocol):
    """The audit log. The methods that change the configuration add its entries; none is ever changed or deleted."""

    async def page(self, filters: AuditFilter) -> list[AuditEntry]:
        """Return a page of the entries that match `filters`, newest first."""
        ...

    async def record_settings(self, subject: str, settings: dict[str, Any]) -> bool:
        """Add an entry `settings_changed` of the actor `system`, unless the last one of `subject` has equal settings.

        `settings` are JSON values without secrets. Return True if an entry was added.
        """
        ...
