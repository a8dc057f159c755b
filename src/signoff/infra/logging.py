"""Set-up of logging: one line for each event on stderr, as text or as JSON.

Writing a line never raises; a line that cannot be written is lost.
"""

import contextlib
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, TextIO, cast

import structlog

from signoff.core.printable import printable

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]
Event = MutableMapping[str, Any]
# Seconds for which an event that equals an earlier one is counted instead of written.
REPEAT_SECONDS = 60.0
MAX_COUNTED = 1000

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that this task serves, which each of its log events has."""
JOB_ID: ContextVar[str | None] = ContextVar("job_id", default=None)
"""Id of the job that this task works on, which each of its log events has."""
TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""Id of the trace that this task belongs to, which each of its log events has; None without traces."""
USER_ID: ContextVar[int | None] = ContextVar("user_id", default=None)
"""Id of the user who made the request that this task serves."""


class RepeatFilter:
    """Processor that writes a warning or an error once, and again after REPEAT_SECONDS with the number of repetitions.

    In an outage, each background service logs the same failure again and again.
    """

    def __init__(self) -> None:
        self._counts = OrderedDict[str, tuple[float, int]]()

    def __call__(self, _logger: Any, method: str, event: Event) -> Event:
        """Return the event; raise DropEvent if an equal one was written less than REPEAT_SECONDS ago."""
        if method not in {"warning", "error", "exception", "critical"}:
            return event
        key, now = repr(sorted(event.items())), time.monotonic()
        written_at, repeated = self._counts.get(key, (-REPEAT_SECONDS, 0))
        if now - written_at < REPEAT_SECONDS:
            self._counts[key] = (written_at, repeated + 1)
            raise structlog.DropEvent
        self._counts[key] = (now, 0)
        self._counts.move_to_end(key)
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        return {**event, "repeated": repeated} if repeated else event


class ErrorStream:
    """The present `sys.stderr`; what cannot be written, as when its disk is full or its reader gone, is lost."""

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a process without a stderr has None
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or lose it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        """Return True if it is a terminal."""
        try:
            return sys.stderr.isatty()
        except (ValueError, AttributeError):
            return False


_STDERR = cast("TextIO", ErrorStream())


class _Output:
    """The processors that `log_to_stderr` has set, which a later call may replace."""

    processors: ClassVar[list[Any] | None] = None


def log_to_stderr(level: Level = "info", line_format: Format = "text") -> None:
    """Write our own events, and warnings and errors of libraries, to stderr, one per line.

    If the program that embeds this one has configured structlog, leave that as it is.
    """
    if structlog.is_configured() and structlog.get_config()["processors"] != _Output.processors:
        return
    shared: list[Any] = [structlog.processors.add_log_level, structlog.processors.format_exc_info]
    written: list[Any] = [structlog.processors.TimeStamper(fmt="iso"), *_rendering(line_format)]
    # The ids come last: an outage that a thousand requests notice is one event.
    _Output.processors = [*shared, RepeatFilter(), _add_ids, *written]
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(_STDERR),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        processors=_Output.processors.copy(),  # capturing changes the list in place
    )
    _write_libraries([*shared, _add_ids, *written])


def _rendering(line_format: Format) -> list[Any]:
    if line_format == "json":
        return [structlog.processors.JSONRenderer(default=str)]
    return [_make_printable, structlog.dev.ConsoleRenderer(colors=_STDERR.isatty())]


def _make_printable(_logger: Any, _method: str, event: Event) -> Event:
    """Replace characters that control the terminal, which a path, a name or the message of a library may have."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _write_libraries(processors: list[Any]) -> None:
    """Write warnings and errors of libraries, which use Python's logging, in the same form."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), _add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
    )
    handler = logging.StreamHandler(_STDERR)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _add_logger_name(logger: Any, _method: str, event: Event) -> Event:
    """Add the name of the library's logger."""
    record: logging.LogRecord | None = event.get("_record")
    event["logger"] = record.name if record else getattr(logger, "name", "")
    return event


_IDS = (("request_id", REQUEST_ID), ("user_id", USER_ID), ("job_id", JOB_ID), ("trace_id", TRACE_ID))


def _add_ids(_logger: Any, _method: str, event: Event) -> Event:
    """Add the ids of the request, of its user, of the job and of the trace, unless the event names them."""
    for name, variable in _IDS:
        if (value := variable.get()) is not None:
            event.setdefault(name, value)
    return event
