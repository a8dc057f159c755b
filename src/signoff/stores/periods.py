"""Ranges of tables that keep sums by hour and by day: whole days are read from the one, the rest from the other."""

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

from signoff.core.times import DAY_US, HOUR_US

Range = tuple[sa.Table, ColumnElement[int], int, int | None]
"""A table, the column of its time, the first time, and the time after the last one; None for no end."""


def hours_of(since: int, until: int | None) -> tuple[int, int | None]:
    """Return the first hour of a period, and the one after its last."""
    return since // HOUR_US * HOUR_US, None if until is None else -(-until // HOUR_US) * HOUR_US


def ranges_of(
    hours: sa.Column[int], days: sa.Column[int], since: int, until: int | None, *, by_hour: bool
) -> list[Range]:
    """Return the sums to read: of the whole days of the period, and of the hours before and after them.

    Args:
        hours: The time of the table with the sums of hours.
        days: The time of the table with the sums of days.
        since: The first hour of the period.
        until: The hour after its last one; None for no end.
        by_hour: True to read nothing but hours.
    """
    first_day = -(-since // DAY_US) * DAY_US
    end_of_days = None if until is None else until // DAY_US * DAY_US
    if by_hour or (end_of_days is not None and end_of_days <= first_day):
        return [(hours.table, hours, since, until)]
    ranges: list[Range] = [(hours.table, hours, since, first_day), (days.table, days, first_day, end_of_days)]
    if until is not None and end_of_days is not None:
        ranges.append((hours.table, hours, end_of_days, until))
    return [each for each in ranges if each[3] is None or each[2] < each[3]]
