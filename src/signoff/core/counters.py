"""Counters of the use of limits.

A minute is a sliding window: a request counts for the sixty seconds after its admission (kept as a log of admissions).
Days and months are those of the calendar, in UTC. Times are microseconds since 1970, by one clock.
"""

from collections.abc import Iterable

import msgspec

from signoff.core.times import MINUTE_US, SECOND_US, day_of, month_of

# With more entries than this, all entries of one span are merged into one, which counts as long as the last of them.
MAX_ENTRIES = 600
MERGE_SPAN_US = MINUTE_US // 300
# A clock that is this far behind an earlier reading was set back.
MAX_SET_BACK_US = 10 * SECOND_US


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """Requests and tokens that were admitted at one time, and count for a minute."""

    at: int
    """Time of the admission."""
    requests: int
    """Number of requests; 0 for tokens that a request took beyond its reservation."""
    tokens: int
    """Number of tokens."""


class PendingReservation(msgspec.Struct, frozen=True, array_like=True):
    """A request in progress, with what is reserved for it."""

    id: str
    """Id of the reservation."""
    until: int
    """Time at which it lapses unless it is renewed."""
    tokens: int
    """Reserved tokens."""
    cost: int
    """Reserved cost in nanodollars."""


class PeriodUsage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens and cost that were used in a day or a month."""

    since: int = 0
    """First instant of the period."""
    tokens: int = 0
    """Used tokens."""
    cost: int = 0
    """Used cost in nanodollars."""


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one limit."""

    entries: tuple[Admission, ...] = ()
    """Admissions of the last minute, oldest first."""
    requests: int = 0
    """Sum of the requests of `entries`; see `with_sums`."""
    tokens: int = 0
    """Sum of the tokens of `entries`."""
    pending: tuple[PendingReservation, ...] = msgspec.field(default=(), name="holds")
    """Requests in progress; empty unless the limit tracks them."""
    day: PeriodUsage = PeriodUsage()
    """Use in the present day."""
    month: PeriodUsage = PeriodUsage()
    """Use in the present month."""


def with_sums(counter: Counter) -> Counter:
    """Return the counter with the sums of its entries, which rows of earlier versions lack."""
    requests, tokens = _sums_of(counter.entries)
    return msgspec.structs.replace(counter, requests=requests, tokens=tokens)


def expire(counter: Counter, now: int) -> Counter:
    """Return the counter without what no longer counts; if the clock was set back, later entries move to `now`."""
    entries = counter.entries
    if is_ahead(counter, now):
        entries = tuple(Admission(min(entry.at, now), entry.requests, entry.tokens) for entry in entries)
    first = next((index for index, entry in enumerate(entries) if entry.at > now - MINUTE_US), len(entries))
    requests, tokens = _sums_of(entries[:first])
    return Counter(
        entries=entries[first:],
        requests=counter.requests - requests,
        tokens=counter.tokens - tokens,
        pending=tuple(request for request in counter.pending if request.until > now),
        day=_in_period(counter.day, day_of(now)),
        month=_in_period(counter.month, month_of(now)),
    )


def with_admission(counter: Counter, entry: Admission) -> Counter:
    """Return the counter with one more entry, the latest."""
    return msgspec.structs.replace(
        counter,
        entries=_append(counter.entries, entry),
        requests=counter.requests + entry.requests,
        tokens=counter.tokens + entry.tokens,
    )


def count_of(entry: Admission | Counter, kind: str) -> int:
    """Return the number of requests or tokens, as `kind` says, of an entry, or of all entries of a counter."""
    return entry.requests if kind == "requests" else entry.tokens


def latest_time(counter: Counter, now: int) -> int:
    """Return the time of the last entry, which can be after `now` if transactions overlap; `now` after a set-back."""
    return now if not counter.entries or is_ahead(counter, now) else counter.entries[-1].at


def is_ahead(counter: Counter, now: int) -> bool:
    """Return True if the clock was set back since the last entry."""
    return bool(counter.entries) and counter.entries[-1].at > now + MAX_SET_BACK_US


def _append(entries: tuple[Admission, ...], entry: Admission) -> tuple[Admission, ...]:
    """Return the entries with one more, merged by instant, and by slot if there are too many."""
    if entries and entries[-1].at == entry.at:
        return (*entries[:-1], _merge(entries[-1], entry))
    if len(entries) < MAX_ENTRIES:
        return (*entries, entry)
    fewer = [entries[0]]
    for each in (*entries[1:], entry):
        if each.at // MERGE_SPAN_US == fewer[-1].at // MERGE_SPAN_US:
            fewer[-1] = _merge(fewer[-1], each)
        else:
            fewer.append(each)
    return tuple(fewer)


def _merge(one: Admission, later: Admission) -> Admission:
    return Admission(later.at, one.requests + later.requests, one.tokens + later.tokens)


def _in_period(usage: PeriodUsage, since: int) -> PeriodUsage:
    """Return the usage of the period that began at `since`; a later one comes from a wrong clock and counts too."""
    return PeriodUsage(since) if usage.since < since else PeriodUsage(since, usage.tokens, usage.cost)


def _sums_of(entries: Iterable[Admission]) -> tuple[int, int]:
    """Return the requests and the tokens of the entries."""
    requests = tokens = 0
    for entry in entries:
        requests += entry.requests
        tokens += entry.tokens
    return requests, tokens
