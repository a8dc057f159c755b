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
MOST_ENTRIES = 600
SLOT = MINUTE // 300
# A clock that is this far behind what it said before was set back.
SET_BACK = 10 * SECOND
# How long it takes until somebody is done is not known.
SLOT_WAIT = SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Who = Literal["all", "each", "user", "token"]
What = Literal["requests", "tokens", "parallel", "tokens_per_day", "tokens_per_month", "cost_per_day", "cost_per_month"]
# How many there may be, how many are left, and the seconds until all are free again.
Gauge = tuple[int, int, float]


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What may be used by all callers together, by each user, by one user, or through one token; of one model, or of
    any. None: as much as they like. A user's own limit stands in the place of the one for each user. Costs are in
    nanodollars.
    """

    who: Who
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
        return named(self.who, self.id, self.model)

    @property
    def keeps_holds(self) -> bool:
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


class Admitted(msgspec.Struct, frozen=True, array_like=True):
    """What was admitted at a time; it counts for a minute."""

    at: int
    requests: int
    tokens: int


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """A request that is under way, and what is reserved for it. It lapses when nobody renews it."""

    id: str
    until: int
    tokens: int
    cost: int


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """What was used up to now in a day or a month, which is told by its first instant."""

    since: int = 0
    tokens: int = 0
    cost: int = 0


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """What was used of a limit."""

    entries: tuple[Admitted, ...] = ()
    holds: tuple[Hold, ...] = ()
    day: Spent = Spent()
    month: Spent = Spent()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What one request would use, of which limits; each goes by the name of the meter that counts for it."""

    id: str
    limits: tuple[tuple[str, Limit], ...]
    tokens: int = 0
    cost: int = 0
    lease_seconds: float = 15


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What was reserved, at which time; and what was left of each kind."""

    wish: Wish
    at: int
    gauges: Mapping[str, Gauge]

    @property
    def keeps_holds(self) -> bool:
        """Whether it lapses when nobody renews it."""
        return any(limit.keeps_holds for _, limit in self.wish.limits)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Which limit leaves no room; `wait` until it does, None for never: the request is larger than the limit.

    `is_budget`: what may be used in a day or a month is used up, and not only reserved.
    """

    limit: Limit
    what: What
    wait: int | None
    is_budget: bool = False
    gauges: Mapping[str, Gauge] = {}


def named(who: Who, number: int, model: str | None) -> str:
    """The name of a limit, and of a meter."""
    whose = who if who in {"all", "each"} else f"{who}:{number}"
    return whose if model is None else f"{whose} {model}"


def admitted(meters: Mapping[str, Meter], wish: Wish, now: int) -> tuple[Mapping[str, Meter], Room | Refusal]:
    """The meters that the reservation changes, and its room; or why there is none, and then nothing is taken.

    Of several limits that leave no room the one that does so for the longest is told.
    """
    now = max([now, *(_latest(meters[name], now) for name, _ in wish.limits if name in meters)])
    standing = {name: as_of(meters.get(name, Meter()), now) for name, _ in wish.limits}
    refusals = [refusal for name, limit in wish.limits for refusal in _refusals(limit, standing[name], wish, now)]
    if refusals:
        worst = max(refusals, key=lambda refusal: (refusal.wait is None, refusal.wait or 0))
        set_right = {
            name: standing[name] for name, meter in meters.items() if name in standing and _is_ahead(meter, now)
        }
        return set_right, msgspec.structs.replace(worst, gauges=gauges(wish.limits, standing, now))
    taken = {name: _taken(limit, standing[name], wish, now) for name, limit in wish.limits}
    return taken, Room(wish=wish, at=now, gauges=gauges(wish.limits, taken, now))


def settled(
    meters: Mapping[str, Meter], room: Room, *, tokens: int, cost: int, asked: bool, now: int
) -> Mapping[str, Meter]:
    """The meters once it is known what a request took. One that was never `asked` of a model has taken nothing.

    What was reserved and not used is given back to the minute that it came from; what was used beyond it counts now.
    """
    after = dict[str, Meter]()
    for name, limit in room.wish.limits:
        meter = meters.get(name, Meter())
        then = max(now, _latest(meter, now))
        meter = as_of(meter, then)
        holds = tuple(hold for hold in meter.holds if hold.id != room.wish.id)
        entries = _corrected(meter.entries, room, tokens, asked=asked, now=then)
        if tokens > room.wish.tokens and limit.tokens_per_minute is not None:
            entries = _added(entries, Admitted(then, 0, tokens - room.wish.tokens))
        day, month = (_more(spent, tokens, cost) for spent in (meter.day, meter.month))
        after[name] = Meter(entries=entries, holds=holds, day=day, month=month)
    return after


def renewed(meters: Mapping[str, Meter], rooms: Iterable[Room], lease_seconds: float, now: int) -> Mapping[str, Meter]:
    """The meters with the holds of these rooms alive for a while more; one that has lapsed is held again."""
    after = dict(meters)
    for room in rooms:
        for name, limit in room.wish.limits:
            if limit.keeps_holds:
                meter = after.get(name, Meter())
                holds = (
                    *(hold for hold in meter.holds if hold.id != room.wish.id),
                    _hold(room.wish, lease_seconds, now),
                )
                after[name] = msgspec.structs.replace(meter, holds=holds)
    return after


def as_of(meter: Meter, now: int) -> Meter:
    """The meter without what no longer counts. Where the clock was set back, what it said before is now."""
    entries = meter.entries
    if _is_ahead(meter, now):
        entries = tuple(Admitted(min(entry.at, now), entry.requests, entry.tokens) for entry in entries)
    first = next((place for place, entry in enumerate(entries) if entry.at > now - MINUTE), len(entries))
    day, month = day_of(now), month_of(now)
    return Meter(
        entries=entries[first:],
        holds=tuple(hold for hold in meter.holds if hold.until > now),
        day=_in(meter.day, day),
        month=_in(meter.month, month),
    )


def gauges(limits: Iterable[tuple[str, Limit]], meters: Mapping[str, Meter], now: int) -> dict[str, Gauge]:
    """What is left of requests and tokens in this minute, of the limit that leaves the least of each."""
    found = dict[str, Gauge]()
    for name, limit in limits:
        entries = meters[name].entries
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


def _refusals(limit: Limit, meter: Meter, wish: Wish, now: int) -> Iterable[Refusal]:
    """Every reason for which `meter` has no room under `limit`."""
    minute: tuple[tuple[What, int | None, int], ...] = (
        ("requests", limit.requests_per_minute, 1),
        ("tokens", limit.tokens_per_minute, wish.tokens),
    )
    for what, most, more in minute:
        if most is not None and more > 0:
            used = sum(_count(entry, what) for entry in meter.entries)
            if more > most:
                yield Refusal(limit=limit, what=what, wait=None)
            elif used + more > most:
                yield Refusal(limit=limit, what=what, wait=_wait(meter.entries, what, used + more - most, now))
    if limit.parallel is not None and len(meter.holds) >= limit.parallel:
        yield Refusal(limit=limit, what="parallel", wait=SLOT_WAIT if limit.parallel else None)
    yield from _spent_refusals(limit, meter, wish, now)


def _spent_refusals(limit: Limit, meter: Meter, wish: Wish, now: int) -> Iterable[Refusal]:
    tokens, cost = sum(hold.tokens for hold in meter.holds), sum(hold.cost for hold in meter.holds)
    tomorrow = day_of(now) + 24 * 60 * MINUTE
    next_month = month_of(month_of(now) + 32 * 24 * 60 * MINUTE)
    budgets: tuple[tuple[What, int | None, int, int, int, int], ...] = (
        ("tokens_per_day", limit.tokens_per_day, meter.day.tokens, tokens, wish.tokens, tomorrow),
        ("tokens_per_month", limit.tokens_per_month, meter.month.tokens, tokens, wish.tokens, next_month),
        ("cost_per_day", limit.cost_per_day, meter.day.cost, cost, wish.cost, tomorrow),
        ("cost_per_month", limit.cost_per_month, meter.month.cost, cost, wish.cost, next_month),
    )
    for what, most, spent, held, more, end in budgets:
        # What costs nothing that is known still waits for a budget that is used up.
        if most is None or spent + held + max(1, more) <= most:
            continue
        if more > most or most == 0:
            yield Refusal(limit=limit, what=what, wait=None, is_budget=True)
        elif spent + max(1, more) > most:
            yield Refusal(limit=limit, what=what, wait=end - now, is_budget=True)
        else:
            yield Refusal(limit=limit, what=what, wait=SLOT_WAIT)


def _taken(limit: Limit, meter: Meter, wish: Wish, now: int) -> Meter:
    entries, holds = meter.entries, meter.holds
    if limit.requests_per_minute is not None or limit.tokens_per_minute is not None:
        entries = _added(entries, Admitted(now, 1, wish.tokens))
    if limit.keeps_holds:
        holds = (*holds, _hold(wish, wish.lease_seconds, now))
    return msgspec.structs.replace(meter, entries=entries, holds=holds)


def _hold(wish: Wish, lease_seconds: float, now: int) -> Hold:
    return Hold(wish.id, now + round(lease_seconds * SECOND), wish.tokens, wish.cost)


def _wait(entries: tuple[Admitted, ...], what: What, excess: int, now: int) -> int:
    """How long until entries that amount to `excess` have left."""
    for entry in entries:
        excess -= _count(entry, what)
        if excess <= 0:
            return entry.at + MINUTE - now
    return MINUTE


def _added(entries: tuple[Admitted, ...], entry: Admitted) -> tuple[Admitted, ...]:
    """The entries with one more; of one instant there is one, and of one slot there is one when there are too many."""
    if entries and entries[-1].at == entry.at:
        return (*entries[:-1], _both(entries[-1], entry))
    if len(entries) < MOST_ENTRIES:
        return (*entries, entry)
    fewer = [entries[0]]
    for each in (*entries[1:], entry):
        if each.at // SLOT == fewer[-1].at // SLOT:
            fewer[-1] = _both(fewer[-1], each)
        else:
            fewer.append(each)
    return tuple(fewer)


def _both(one: Admitted, later: Admitted) -> Admitted:
    return Admitted(later.at, one.requests + later.requests, one.tokens + later.tokens)


def _corrected(
    entries: tuple[Admitted, ...], room: Room, tokens: int, *, asked: bool, now: int
) -> tuple[Admitted, ...]:
    """The entries with what was reserved and not used given back, where that still counts."""
    surplus = max(0, room.wish.tokens - tokens)
    place = next((place for place, entry in enumerate(entries) if entry.at >= room.at), None)
    if place is None or (asked and not surplus) or not now - MINUTE < room.at <= now:
        return entries
    entry = entries[place]
    kept = Admitted(entry.at, max(0, entry.requests - (not asked)), max(0, entry.tokens - surplus))
    return (*entries[:place], *((kept,) if kept.requests or kept.tokens else ()), *entries[place + 1 :])


def _more(spent: Spent, tokens: int, cost: int) -> Spent:
    return Spent(spent.since, spent.tokens + tokens, spent.cost + cost)


def _in(spent: Spent, since: int) -> Spent:
    """What was spent since then. A period that has not begun is one that a wrong clock told of."""
    return Spent(since) if spent.since < since else Spent(since, spent.tokens, spent.cost)


def _count(entry: Admitted, what: str) -> int:
    return entry.requests if what == "requests" else entry.tokens


def _latest(meter: Meter, now: int) -> int:
    """The time of the last entry, which a slower transaction may have been overtaken by; `now` if the clock was set."""
    return now if not meter.entries or _is_ahead(meter, now) else meter.entries[-1].at


def _is_ahead(meter: Meter, now: int) -> bool:
    """Whether it was counted by a clock that was set back since."""
    return bool(meter.entries) and meter.entries[-1].at > now + SET_BACK


def _date(now: int) -> datetime:
    return EPOCH + timedelta(microseconds=now)
