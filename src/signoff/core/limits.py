"""Limits per minute, in parallel, per day and per month: reservations against them, and what is left."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Literal

import msgspec

from signoff.core.counters import (
    Admission,
    Counter,
    PendingReservation,
    PeriodUsage,
    count_of,
    expire,
    is_ahead,
    latest_time,
    with_admission,
)
from signoff.core.times import MINUTE_US, SECOND_US, next_day, next_month

# Suggested wait for a parallel slot, since it is not known when a request ends.
SLOT_WAIT_US = SECOND_US

LimitScope = Literal["all", "each", "user", "token"]
LimitKind = Literal[
    "requests", "tokens", "parallel", "tokens_per_day", "tokens_per_month", "cost_per_day", "cost_per_month"
]
# Limit per minute, number left, and seconds until all are available again.
Gauge = tuple[int, int, float]


class Limit(msgspec.Struct, frozen=True, kw_only=True, rename={"scope": "who"}):
    """A limit on the use of one model or all models. None stands for no limit; costs are nanodollars."""

    scope: LimitScope
    """`all`: all callers together; `each`: each user without a limit of their own; `user` or `token`: one of them."""
    id: int = 0
    """Id of the user or token; 0 for `all` and `each`."""
    email: str = ""
    """Email of the user; empty for other scopes."""
    model: str | None = None
    """Name of the model that it applies to; None for all models together."""
    requests_per_minute: int | None = None
    """Requests in any 60 seconds."""
    tokens_per_minute: int | None = None
    """Tokens of requests and answers in any 60 seconds."""
    parallel: int | None = None
    """Requests in progress at once."""
    tokens_per_day: int | None = None
    """Tokens in a calendar day, UTC."""
    tokens_per_month: int | None = None
    """Tokens in a calendar month, UTC."""
    cost_per_day: int | None = None
    """Nanodollars in a calendar day, UTC."""
    cost_per_month: int | None = None
    """Nanodollars in a calendar month, UTC."""

    @property
    def name(self) -> str:
        """Unique name of the limit."""
        return limit_name(self.scope, self.id, self.model)

    @property
    def tracks_pending(self) -> bool:
        """True if requests in progress must be counted."""
        return self.parallel is not None or self.has_budget

    @property
    def has_budget(self) -> bool:
        """True if the use of a day or a month is limited."""
        budgets = (self.tokens_per_day, self.tokens_per_month, self.cost_per_day, self.cost_per_month)
        return any(most is not None for most in budgets)

    @property
    def counts_tokens(self) -> bool:
        """True if the tokens of a request must be estimated and counted."""
        counted = (self.tokens_per_minute, self.tokens_per_day, self.tokens_per_month)
        return any(most is not None for most in counted) or self.counts_cost

    @property
    def counts_cost(self) -> bool:
        """True if the cost of a request must be estimated and counted."""
        return self.cost_per_day is not None or self.cost_per_month is not None


class ReservationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The estimated use of one request, and the limits that apply to it."""

    id: str
    """Id of the reservation, such as that of the job."""
    limits: tuple[tuple[str, Limit], ...]
    """Limits that apply, each with the name of its counter."""
    tokens: int = 0
    """Estimated tokens of the request and its answer."""
    cost: int = 0
    """Estimated cost in nanodollars."""
    lease_seconds: float = 15
    """Time after which the reservation lapses unless it is renewed."""
    user_id: int = 0
    """User whose request it is."""
    token_id: int = 0
    """Token of the request."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A granted reservation."""

    request: ReservationRequest
    """The request that was granted."""
    at: int
    """Time of the admission."""
    gauges: Mapping[str, Gauge]
    """See `compute_gauges`, after the reservation."""

    @property
    def tracks_pending(self) -> bool:
        """True if it lapses unless it is renewed."""
        return any(limit.tracks_pending for _, limit in self.request.limits)


class Denial(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation that a limit does not allow."""

    limit: Limit
    """The exceeded limit."""
    kind: LimitKind
    """The exceeded member of the limit."""
    wait_us: int | None
    """Microseconds until the request may fit; None if it exceeds the limit by itself."""
    is_budget: bool = False
    """True if the budget of the day or the month is used up, and not only reserved."""
    gauges: Mapping[str, Gauge] = {}
    """See `compute_gauges`."""


def limit_name(scope: LimitScope, number: int, model: str | None) -> str:
    """Return the name of a limit; `number` is the id of its user or token."""
    owner = scope if scope in {"all", "each"} else f"{scope}:{number}"
    return owner if model is None else f"{owner} {model}"


def try_reserve(
    counters: Mapping[str, Counter], request: ReservationRequest, now: int
) -> tuple[Mapping[str, Counter], Reservation | Denial]:
    """Reserve `request` under all its limits, or under none.

    `counters` holds the use of the limits by the names in `request.limits`; a missing one counts as unused. Return the
    changed counters, and the reservation or its denial, which names the exceeded limit with the longest wait.
    """
    now = max([now, *(latest_time(counters[name], now) for name, _ in request.limits if name in counters)])
    current = {name: expire(counters.get(name, Counter()), now) for name, _ in request.limits}
    denials = [denial for name, limit in request.limits for denial in _denials(limit, current[name], request, now)]
    if denials:
        worst = max(denials, key=lambda denial: (denial.wait_us is None, denial.wait_us or 0))
        corrected = {
            name: current[name] for name, counter in counters.items() if name in current and is_ahead(counter, now)
        }
        return corrected, msgspec.structs.replace(worst, gauges=compute_gauges(request.limits, current, now))
    reserved = {name: _with_reservation(limit, current[name], request, now) for name, limit in request.limits}
    return reserved, Reservation(request=request, at=now, gauges=compute_gauges(request.limits, reserved, now))


def settle_reservation(
    counters: Mapping[str, Counter], reservation: Reservation, *, tokens: int, cost: int, was_sent: bool, now: int
) -> Mapping[str, Counter]:
    """Return the counters after a request has ended, having taken `tokens` and `cost` (nanodollars).

    Tokens that were reserved and not used are returned to the minute of the admission; those beyond the reservation
    count from `now` on. With `was_sent` False, the request never went to a model and does not count.
    """
    after = dict[str, Counter]()
    for name, limit in reservation.request.limits:
        counter = counters.get(name, Counter())
        time = max(now, latest_time(counter, now))
        counter = expire(counter, time)
        pending = tuple(other for other in counter.pending if other.id != reservation.request.id)
        counter = _without_unused(counter, reservation, tokens, was_sent=was_sent, now=time)
        if tokens > reservation.request.tokens and limit.tokens_per_minute is not None:
            counter = with_admission(counter, Admission(time, 0, tokens - reservation.request.tokens))
        periods = (counter.day, counter.month)
        day, month = (PeriodUsage(each.since, each.tokens + tokens, each.cost + cost) for each in periods)
        after[name] = msgspec.structs.replace(counter, pending=pending, day=day, month=month)
    return after


def renew_reservations(
    counters: Mapping[str, Counter], reservations: Iterable[Reservation], lease_seconds: float, now: int
) -> Mapping[str, Counter]:
    """Return the counters with the reservations renewed for `lease_seconds`; one that has lapsed is added again."""
    after = dict(counters)
    for reservation in reservations:
        for name, limit in reservation.request.limits:
            if limit.tracks_pending:
                counter = after.get(name, Counter())
                pending = (
                    *(other for other in counter.pending if other.id != reservation.request.id),
                    _pending_reservation(reservation.request, lease_seconds, now),
                )
                after[name] = msgspec.structs.replace(counter, pending=pending)
    return after


def compute_gauges(limits: Iterable[tuple[str, Limit]], counters: Mapping[str, Counter], now: int) -> dict[str, Gauge]:
    """Return the gauges of `requests` and `tokens` per minute, each of the limit with the least left."""
    gauges = dict[str, Gauge]()
    for name, limit in limits:
        counter = counters[name]
        for kind, most in (("requests", limit.requests_per_minute), ("tokens", limit.tokens_per_minute)):
            if most is None:
                continue
            left = max(0, most - count_of(counter, kind))
            last = next((entry for entry in reversed(counter.entries) if count_of(entry, kind)), None)
            reset = 0.0 if last is None else (last.at + MINUTE_US - now) / SECOND_US
            if kind not in gauges or left < gauges[kind][1]:
                gauges[kind] = (most, left, max(0.0, reset))
    return gauges


def _denials(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Iterable[Denial]:
    """Yield every reason for which `request` does not fit under `limit`."""
    minute: tuple[tuple[LimitKind, int | None, int], ...] = (
        ("requests", limit.requests_per_minute, 1),
        ("tokens", limit.tokens_per_minute, request.tokens),
    )
    for kind, most, more in minute:
        if most is not None and more > 0:
            used = count_of(counter, kind)
            if more > most:
                yield Denial(limit=limit, kind=kind, wait_us=None)
            elif used + more > most:
                yield Denial(limit=limit, kind=kind, wait_us=_wait(counter.entries, kind, used + more - most, now))
    if limit.parallel is not None and len(counter.pending) >= limit.parallel:
        yield Denial(limit=limit, kind="parallel", wait_us=SLOT_WAIT_US if limit.parallel else None)
    yield from _period_denials(limit, counter, request, now)


def _period_denials(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Iterable[Denial]:
    if not limit.has_budget:
        return
    tokens, cost = sum(other.tokens for other in counter.pending), sum(other.cost for other in counter.pending)
    tomorrow, month = next_day(now), next_month(now)
    budgets: tuple[tuple[LimitKind, int | None, int, int, int, int], ...] = (
        ("tokens_per_day", limit.tokens_per_day, counter.day.tokens, tokens, request.tokens, tomorrow),
        ("tokens_per_month", limit.tokens_per_month, counter.month.tokens, tokens, request.tokens, month),
        ("cost_per_day", limit.cost_per_day, counter.day.cost, cost, request.cost, tomorrow),
        ("cost_per_month", limit.cost_per_month, counter.month.cost, cost, request.cost, month),
    )
    for kind, most, used, reserved, more, end in budgets:
        # A request without an estimate counts as 1, so that it waits too once a budget is used up.
        if most is None or used + reserved + max(1, more) <= most:
            continue
        if more > most or most == 0:
            yield Denial(limit=limit, kind=kind, wait_us=None, is_budget=True)
        elif used + max(1, more) > most:
            yield Denial(limit=limit, kind=kind, wait_us=end - now, is_budget=True)
        else:
            yield Denial(limit=limit, kind=kind, wait_us=SLOT_WAIT_US)


def _with_reservation(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Counter:
    if limit.requests_per_minute is not None or limit.tokens_per_minute is not None:
        counter = with_admission(counter, Admission(now, 1, request.tokens))
    if limit.tracks_pending:
        pending = (*counter.pending, _pending_reservation(request, request.lease_seconds, now))
        counter = msgspec.structs.replace(counter, pending=pending)
    return counter


def _pending_reservation(request: ReservationRequest, lease_seconds: float, now: int) -> PendingReservation:
    return PendingReservation(request.id, now + round(lease_seconds * SECOND_US), request.tokens, request.cost)


def _wait(entries: tuple[Admission, ...], kind: LimitKind, excess: int, now: int) -> int:
    """Return the microseconds until entries with a sum of `excess` no longer count."""
    for entry in entries:
        excess -= count_of(entry, kind)
        if excess <= 0:
            return entry.at + MINUTE_US - now
    return MINUTE_US


def _without_unused(counter: Counter, reservation: Reservation, tokens: int, *, was_sent: bool, now: int) -> Counter:
    """Return the counter without what was reserved and not used, if the reservation still counts."""
    surplus = max(0, reservation.request.tokens - tokens)
    index = bisect_left(counter.entries, reservation.at, key=attrgetter("at"))
    is_counted = now - MINUTE_US < reservation.at <= now and index < len(counter.entries)
    if not is_counted or (was_sent and not surplus):
        return counter
    entry = counter.entries[index]
    used = Admission(entry.at, max(0, entry.requests - (not was_sent)), max(0, entry.tokens - surplus))
    rest = (used,) if used.requests or used.tokens else ()
    return msgspec.structs.replace(
        counter,
        entries=(*counter.entries[:index], *rest, *counter.entries[index + 1 :]),
        requests=counter.requests - entry.requests + used.requests,
        tokens=counter.tokens - entry.tokens + used.tokens,
    )
