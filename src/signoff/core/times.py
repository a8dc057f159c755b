"""Spans of time in microseconds, and periods of the calendar in UTC."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def day_of(now: int) -> int:
    """Return the first instant of the day of `now`, UTC."""
    return now - now % DAY_US


def next_day(now: int) -> int:
    """Return the first instant of the day after that of `now`, UTC."""
    return day_of(now) + DAY_US


def month_of(now: int) -> int:
    """Return the first instant of the month of `now`, UTC."""
    return _month_of_day(day_of(now))


def next_month(now: int) -> int:
    """Return the first instant of the month after that of `now`, UTC."""
    return month_of(month_of(now) + 32 * DAY_US)


@lru_cache(maxsize=8)
def _month_of_day(day: int) -> int:
    first = (EPOCH + timedelta(microseconds=day)).replace(day=1)
    return (first - EPOCH) // timedelta(microseconds=1)
