"""Where the log goes: to stderr, a line an event."""

from __future__ import annotations

import logging
import sys

import structlog


def to_stderr() -> None:
    """Sends our own log, and what libraries say from a warning on, to stderr; once a process."""
    if structlog.is_configured():
        return
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )
