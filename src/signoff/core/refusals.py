"""Numbers of requests that a limit has refused, or made wait."""

import msgspec

from signoff.core.limits import LimitKind


class RefusalCount(msgspec.Struct, frozen=True, kw_only=True):
    """Number of times that a limit did not allow a request of a token; a queued job counts at each attempt."""

    limit_name: str
    """Name of the limit; see `limits.limit_name`."""
    kind: LimitKind
    """Member of the limit that was exceeded."""
    email: str | None
    """Email of the user; None for one who does not exist."""
    token_id: int
    """Id of the token."""
    refused: int
    """Number of refusals."""
    hour: int
    """Start of the latest hour with one, in microseconds since 1970, UTC."""
