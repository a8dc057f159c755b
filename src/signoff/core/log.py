"""Lines of the log of a model."""

from typing import Literal

import msgspec

Level = Literal["info", "error"]


class LogLine(msgspec.Struct, frozen=True):
    """A line that a model wrote, or an error of a request to it."""

    at: int
    """Microseconds since 1970, UTC."""
    level: Level
    """`info` for output of the model, `error` for a failure."""
    text: str
    """The line, without its line feed."""
