"""Settings of uvicorn for this application."""

import functools
import resource
from typing import Any

from signoff.server.protocol import ConnectionLimits, ConnectionRegistry, HttpConnection

DRAIN_SECONDS = 10
# Files that a process opens besides the connections of its clients: of the database, of upstreams, of models.
OTHER_FILES = 512


def uvicorn_options(max_connections: int) -> dict[str, Any]:
    """Return the options of uvicorn's `Config` for a process that may have so many connections."""
    registry = ConnectionRegistry(ConnectionLimits(max_connections=max_connections))
    return {
        "loop": "uvloop",
        "http": functools.partial(HttpConnection, registry=registry),
        "ws": "none",  # no door takes WebSockets, and such a connection would have no limits
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,  # `doors.http.scheme_of` reads the one header that matters
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }


def allow_connections(number: int) -> int:
    """Let this process and those that it starts open the files of `number` connections.

    Return `number`, or what fits into the hard limit of files: a server without files could not serve anybody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return number
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a limit below an infinite hard one
        allowed = soft
    return max(allowed - OTHER_FILES, allowed // 2)
