"""A line of a model's log."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["info", "error"]


class LogLine(msgspec.Struct, frozen=True):
    """What a model wrote (`info`), or how it failed (`error`); `at` is in microseconds since 1970."""

    at: int
    level: Level
    text: str
