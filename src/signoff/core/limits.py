"""Limits: how much may be asked in a minute, at once, in a day and in a month; what was used, and what still fits.

A minute is any minute: what is admitted counts for the sixty seconds that follow it (a sliding window, kept as a log of
what was admitted). A day and a month are those of the calendar, in UTC. Times are microseconds, by one clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

SECOND = 1_000_000
MINUTE = 60 * SECOND
# With more entries than this, those of one slot become one, which counts as long as the last of them.
MAX_ENTRIES = 600
SLOT = MINUTE // 300
# A clock that is this far behind what it said before was set back.
SET_BACK = 10 * SECOND
# How long it takes until somebody is done is not known.
SLOT_WAIT = SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LimitScope = Literal["all", "each", "user", "token"]
LimitKind = Literal[
    "requests", "tokens", "parallel", "tokens_per_day", "tokens_per_month", "cost_per_day", "cost_per_month"
]
# How many there may be, how many are left, and the seconds until all are free again.
Gauge = tuple[int, int, float]


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What may be used by all callers together, by each user, by one user, or through one token; of one model, or of
    any. None: as much as they like. A user's own limit stands in the place of the one for each user. Costs are in
    nanodollars.
    """

    who: LimitScope
    id: int = 0
    email: str = ""
    model: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: int | None = None
    cost_per_month: int | None = None

    @property
    def name(self) -> str:
        """What it is called; no two have one name."""
        return limit_name(self.who, self.id, self.model)

    @property
    def tracks_pending(self) -> bool:
        """Whether it must be known who is under way."""
        budgets = (self.tokens_per_day, self.tokens_per_month, self.cost_per_day, self.cost_per_month)
        return self.parallel is not None or any(most is not None for most in budgets)

    @property
    def counts_tokens(self) -> bool:
        """Whether it must be known how many tokens a request takes."""
        counted = (self.tokens_per_minute, self.tokens_per_day, self.tokens_per_month)
        return any(most is not None for most in counted) or self.counts_cost

    @property
    def counts_cost(self) -> bool:
        """Whether it must be known what a request costs."""
        return self.cost_per_day is not None or self.cost_per_month is not None


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """What was admitted at a time; it counts for a minute."""

    at: int
    requests: int
    tokens: int


class PendingReservation(msgspec.Struct, frozen=True, array_like=True):
    """A request that is under way, and what is reserved for it. It lapses when nobody renews it."""

    id: str
    until: int
    tokens: int
    cost: int


class PeriodUsage(msgspec.Struct, frozen=True, array_like=True):
    """What was used up to now in a day or a month, which is told by its first instant."""

    since: int = 0
    tokens: int = 0
    cost: int = 0


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """What was used of a limit."""

    entries: tuple[Admission, ...] = ()
    pending: tuple[PendingReservation, ...] = msgspec.field(default=(), name="holds")
    day: PeriodUsage = PeriodUsage()
    month: PeriodUsage = PeriodUsage()


class ReservationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one request would use, of which limits; each goes by the name of the meter that counts for it."""

    id: str
    limits: tuple[tuple[str, Limit], ...]
    tokens: int = 0
    cost: int = 0
    lease_seconds: float = 15


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What was reserved, at which time; and what was left of each kind."""

    request: ReservationRequest
    at: int
    gauges: Mapping[str, Gauge]

    @property
    def tracks_pending(self) -> bool:
        """Whether it lapses when nobody renews it."""
        return any(limit.tracks_pending for _, limit in self.request.limits)


class Denial(msgspec.Struct, frozen=True, kw_only=True):
    """Which limit leaves no room; `wait` until it does, None for never: the request is larger than the limit.

    `is_budget`: what may be used in a day or a month is used up, and not only reserved.
    """

    limit: Limit
    kind: LimitKind
    wait: int | None
    is_budget: bool = False
    gauges: Mapping[str, Gauge] = {}


def limit_name(who: LimitScope, number: int, model: str | None) -> str:
    """The name of a limit, and of a meter."""
    whose = who if who in {"all", "each"} else f"{who}:{number}"
    return whose if model is None else f"{whose} {model}"


def try_reserve(
    counters: Mapping[str, Counter], request: ReservationRequest, now: int
) -> tuple[Mapping[str, Counter], Reservation | Denial]:
    """The meters that the reservation changes, and its room; or why there is none, and then nothing is taken.

    Of several limits that leave no room the one that does so for the longest is told.
    """
    now = max([now, *(_latest(counters[name], now) for name, _ in request.limits if name in counters)])
    standing = {name: expire(counters.get(name, Counter()), now) for name, _ in request.limits}
    denials = [denial for name, limit in request.limits for denial in _denials(limit, standing[name], request, now)]
    if denials:
        worst = max(denials, key=lambda denial: (denial.wait is None, denial.wait or 0))
        set_right = {
            name: standing[name] for name, counter in counters.items() if name in standing and _is_ahead(counter, now)
        }
        return set_right, msgspec.structs.replace(worst, gauges=compute_gauges(request.limits, standing, now))
    taken = {name: _with_reservation(limit, standing[name], request, now) for name, limit in request.limits}
    return taken, Reservation(request=request, at=now, gauges=compute_gauges(request.limits, taken, now))


def settle_reservation(
    counters: Mapping[str, Counter], reservation: Reservation, *, tokens: int, cost: int, asked: bool, now: int
) -> Mapping[str, Counter]:
    """The meters once it is known what a request took. One that was never `asked` of a model has taken nothing.

    What was reserved and not used is given back to the minute that it came from; what was used beyond it counts now.
    """
    after = dict[str, Counter]()
    for name, limit in reservation.request.limits:
        counter = counters.get(name, Counter())
        then = max(now, _latest(counter, now))
        counter = expire(counter, then)
        holds = tuple(hold for hold in counter.pending if hold.id != reservation.request.id)
        entries = _corrected(counter.entries, reservation, tokens, asked=asked, now=then)
        if tokens > reservation.request.tokens and limit.tokens_per_minute is not None:
            entries = _added(entries, Admission(then, 0, tokens - reservation.request.tokens))
        day, month = (_more(spent, tokens, cost) for spent in (counter.day, counter.month))
        after[name] = Counter(entries=entries, pending=holds, day=day, month=month)
    return after


def renew_reservations(
    counters: Mapping[str, Counter], reservations: Iterable[Reservation], lease_seconds: float, now: int
) -> Mapping[str, Counter]:
    """The meters with the holds of these rooms alive for a while more; one that has lapsed is held again."""
    after = dict(counters)
    for reservation in reservations:
        for name, limit in reservation.request.limits:
            if limit.tracks_pending:
                counter = after.get(name, Counter())
                pending = (
                    *(hold for hold in counter.pending if hold.id != reservation.request.id),
                    _pending_reservation(reservation.request, lease_seconds, now),
                )
                after[name] = msgspec.structs.replace(counter, pending=pending)
    return after


def expire(counter: Counter, now: int) -> Counter:
    """The meter without what no longer counts. Where the clock was set back, what it said before is now."""
    entries = counter.entries
    if _is_ahead(counter, now):
        entries = tuple(Admission(min(entry.at, now), entry.requests, entry.tokens) for entry in entries)
    first = next((place for place, entry in enumerate(entries) if entry.at > now - MINUTE), len(entries))
    day, month = day_of(now), month_of(now)
    return Counter(
        entries=entries[first:],
        pending=tuple(hold for hold in counter.pending if hold.until > now),
        day=_in(counter.day, day),
        month=_in(counter.month, month),
    )


def compute_gauges(limits: Iterable[tuple[str, Limit]], counters: Mapping[str, Counter], now: int) -> dict[str, Gauge]:
    """What is left of requests and tokens in this minute, of the limit that leaves the least of each."""
    found = dict[str, Gauge]()
    for name, limit in limits:
        entries = counters[name].entries
        for what, most in (("requests", limit.requests_per_minute), ("tokens", limit.tokens_per_minute)):
            if most is None:
                continue
            counted = [entry for entry in entries if _count(entry, what)]
            left = max(0, most - sum(_count(entry, what) for entry in counted))
            reset = (counted[-1].at + MINUTE - now) / SECOND if counted else 0.0
            if what not in found or left < found[what][1]:
                found[what] = (most, left, max(0.0, reset))
    return found


def day_of(now: int) -> int:
    """The first instant of the day, UTC."""
    return now - now % (24 * 60 * MINUTE)


def month_of(now: int) -> int:
    """The first instant of the month, UTC."""
    first = _date(now).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - EPOCH) // timedelta(microseconds=1)


def _denials(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Iterable[Denial]:
    """Every reason for which `counter` has no room under `limit`."""
    minute: tuple[tuple[LimitKind, int | None, int], ...] = (
        ("requests", limit.requests_per_minute, 1),
        ("tokens", limit.tokens_per_minute, request.tokens),
    )
    for what, most, more in minute:
        if most is not None and more > 0:
            used = sum(_count(entry, what) for entry in counter.entries)
            if more > most:
                yield Denial(limit=limit, kind=what, wait=None)
            elif used + more > most:
                yield Denial(limit=limit, kind=what, wait=_wait(counter.entries, what, used + more - most, now))
    if limit.parallel is not None and len(counter.pending) >= limit.parallel:
        yield Denial(limit=limit, kind="parallel", wait=SLOT_WAIT if limit.parallel else None)
    yield from _period_denials(limit, counter, request, now)


def _period_denials(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Iterable[Denial]:
    tokens, cost = sum(hold.tokens for hold in counter.pending), sum(hold.cost for hold in counter.pending)
    tomorrow = day_of(now) + 24 * 60 * MINUTE
    next_month = month_of(month_of(now) + 32 * 24 * 60 * MINUTE)
    budgets: tuple[tuple[LimitKind, int | None, int, int, int, int], ...] = (
        ("tokens_per_day", limit.tokens_per_day, counter.day.tokens, tokens, request.tokens, tomorrow),
        ("tokens_per_month", limit.tokens_per_month, counter.month.tokens, tokens, request.tokens, next_month),
        ("cost_per_day", limit.cost_per_day, counter.day.cost, cost, request.cost, tomorrow),
        ("cost_per_month", limit.cost_per_month, counter.month.cost, cost, request.cost, next_month),
    )
    for what, most, spent, held, more, end in budgets:
        # What costs nothing that is known still waits for a budget that is used up.
        if most is None or spent + held + max(1, more) <= most:
            continue
        if more > most or most == 0:
            yield Denial(limit=limit, kind=what, wait=None, is_budget=True)
        elif spent + max(1, more) > most:
            yield Denial(limit=limit, kind=what, wait=end - now, is_budget=True)
        else:
            yield Denial(limit=limit, kind=what, wait=SLOT_WAIT)


def _with_reservation(limit: Limit, counter: Counter, request: ReservationRequest, now: int) -> Counter:
    entries, pending = counter.entries, counter.pending
    if limit.requests_per_minute is not None or limit.tokens_per_minute is not None:
        entries = _added(entries, Admission(now, 1, request.tokens))
    if limit.tracks_pending:
        pending = (*pending, _pending_reservation(request, request.lease_seconds, now))
    return msgspec.structs.replace(counter, entries=entries, pending=pending)


def _pending_reservation(request: ReservationRequest, lease_seconds: float, now: int) -> PendingReservation:
    return PendingReservation(request.id, now + round(lease_seconds * SECOND), request.tokens, request.cost)


def _wait(entries: tuple[Admission, ...], what: LimitKind, excess: int, now: int) -> int:
    """How long until entries that amount to `excess` have left."""
    for entry in entries:
        excess -= _count(entry, what)
        if excess <= 0:
            return entry.at + MINUTE - now
    return MINUTE


def _added(entries: tuple[Admission, ...], entry: Admission) -> tuple[Admission, ...]:
    """The entries with one more; of one instant there is one, and of one slot there is one when there are too many."""
    if entries and entries[-1].at == entry.at:
        return (*entries[:-1], _both(entries[-1], entry))
    if len(entries) < MAX_ENTRIES:
        return (*entries, entry)
    fewer = [entries[0]]
    for each in (*entries[1:], entry):
        if each.at // SLOT == fewer[-1].at // SLOT:
            fewer[-1] = _both(fewer[-1], each)
        else:
            fewer.append(each)
    return tuple(fewer)


def _both(one: Admission, later: Admission) -> Admission:
    return Admission(later.at, one.requests + later.requests, one.tokens + later.tokens)


def _corrected(
    entries: tuple[Admission, ...], reservation: Reservation, tokens: int, *, asked: bool, now: int
) -> tuple[Admission, ...]:
    """The entries with what was reserved and not used given back, where that still counts."""
    surplus = max(0, reservation.request.tokens - tokens)
    place = next((place for place, entry in enumerate(entries) if entry.at >= reservation.at), None)
    if place is None or (asked and not surplus) or not now - MINUTE < reservation.at <= now:
        return entries
    entry = entries[place]
    kept = Admission(entry.at, max(0, entry.requests - (not asked)), max(0, entry.tokens - surplus))
    return (*entries[:place], *((kept,) if kept.requests or kept.tokens else ()), *entries[place + 1 :])


def _more(spent: PeriodUsage, tokens: int, cost: int) -> PeriodUsage:
    return PeriodUsage(spent.since, spent.tokens + tokens, spent.cost + cost)


def _in(spent: PeriodUsage, since: int) -> PeriodUsage:
    """What was spent since then. A period that has not begun is one that a wrong clock told of."""
    return PeriodUsage(since) if spent.since < since else PeriodUsage(since, spent.tokens, spent.cost)


def _count(entry: Admission, what: str) -> int:
    return entry.requests if what == "requests" else entry.tokens


def _latest(counter: Counter, now: int) -> int:
    """The time of the last entry, which a slower transaction may have been overtaken by; `now` if the clock was set."""
    return now if not counter.entries or _is_ahead(counter, now) else counter.entries[-1].at


def _is_ahead(counter: Counter, now: int) -> bool:
    """Whether it was counted by a clock that was set back since."""
    return bool(counter.entries) and counter.entries[-1].at > now + SET_BACK


def _date(now: int) -> datetime:
    return EPOCH + timedelta(microseconds=now)
