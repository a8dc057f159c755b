"""Limits of the size and the pace of what clients send and read."""

import msgspec


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the connections of one process."""

    max_connections: int = 4096
    """Maximum number of open connections; a further one gets status 503 and is closed."""
    max_pipelined: int = 64
    """Maximum number of requests of a connection that wait for the response to an earlier one."""
    head_bytes: int = 64 * 1024
    """Maximum bytes of the request line with the headers, and of the trailers."""
    head_fields: int = 256
    """Maximum number of headers, and of trailers."""
    head_seconds: int = 15
    """Maximum seconds from the first byte of a head to its last one, and from the connection to its first byte."""
    body_pause_seconds: int = 15
    """Maximum seconds between two pieces of a body."""
    body_grace_seconds: int = 30
    """Seconds after which the average rate of a body counts."""
    body_bytes_per_second: int = 1024
    """Minimum average rate of a body."""
    read_pause_seconds: int = 60
    """Maximum seconds for which a client may not read while a part of its response waits to be read."""
    unread_bytes: int = 512 * 1024 * 1024
    """Bytes of all responses that wait to be read, above which the connections with the most are closed."""
