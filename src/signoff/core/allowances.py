"""Allowances: what each number of a limit allows, how much of it is used, and when it is free again."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from signoff.core.counters import Admission, Counter
from signoff.core.limits import Limit
from signoff.core.times import MINUTE_US, next_day, next_month

AllowanceName = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "parallel",
    "tokens_per_day",
    "tokens_per_month",
    "cost_per_day",
    "cost_per_month",
]


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """Number of a limit, with its present use. Costs are nanodollars."""

    name: AllowanceName
    """Member of the limit."""
    most: int
    """Largest allowed use."""
    used: int
    """Present use, with what requests in progress have reserved."""
    reserved: int = 0
    """Part of `used` that requests in progress have reserved."""
    free_at: int | None = None
    """Microseconds since 1970, UTC, at which a part is free again if nothing is left, or else everything is; None if
    nothing is used, or if the time is not known."""

    @property
    def is_exhausted(self) -> bool:
        """True if nothing is left."""
        return self.used >= self.most


def allowances(limit: Limit, counter: Counter, now: int) -> list[Allowance]:
    """Return the numbers of a limit that are set, with their use at `now`, in the order of `Limit`."""
    return [*_of_minute(limit, counter), *_of_periods(limit, counter, now)]


def _of_minute(limit: Limit, counter: Counter) -> Iterator[Allowance]:
    entries = counter.entries
    if (most := limit.requests_per_minute) is not None:
        counts = [entry.requests for entry in entries]
        yield _sliding("requests_per_minute", most, counts, entries)
    if (most := limit.tokens_per_minute) is not None:
        counts = [entry.tokens for entry in entries]
        yield _sliding("tokens_per_minute", most, counts, entries)
    if limit.parallel is not None:
        yield Allowance(name="parallel", most=limit.parallel, used=len(counter.pending))


def _sliding(name: AllowanceName, most: int, counts: list[int], entries: tuple[Admission, ...]) -> Allowance:
    """Return the allowance of a sliding minute, in which the entries have these counts."""
    times = [entry.at + MINUTE_US for entry, count in zip(entries, counts, strict=True) if count]
    used = sum(counts)
    free_at = None if not times else times[0] if used >= most else times[-1]
    return Allowance(name=name, most=most, used=used, free_at=free_at)


def _of_periods(limit: Limit, counter: Counter, now: int) -> Iterator[Allowance]:
    tokens, cost = sum(each.tokens for each in counter.pending), sum(each.cost for each in counter.pending)
    tomorrow, month = next_day(now), next_month(now)
    rows: tuple[tuple[AllowanceName, int | None, int, int, int], ...] = (
        ("tokens_per_day", limit.tokens_per_day, counter.day.tokens, tokens, tomorrow),
        ("tokens_per_month", limit.tokens_per_month, counter.month.tokens, tokens, month),
        ("cost_per_day", limit.cost_per_day, counter.day.cost, cost, tomorrow),
        ("cost_per_month", limit.cost_per_month, counter.month.cost, cost, month),
    )
    for name, most, used, reserved, end in rows:
        if most is not None:
            free_at = end if used + reserved else None
            yield Allowance(name=name, most=most, used=used + reserved, reserved=reserved, free_at=free_at)
