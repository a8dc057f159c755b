"""Settings of uvicorn for this application, and its HTTP connections."""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from signoff.doors.http import CONNECTION

DRAIN_SECONDS = 10


class HttpConnection(HttpToolsProtocol):
    """HTTP connection that calls back when its client leaves, so that no request needs a task that waits for that."""

    is_gone = False
    """True once the connection is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_gone = set[Callable[[], object]]()
        """Callbacks for when the connection is lost."""

    def watch(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client leaves, until it is taken from `on_gone`.

        Go on reading, because uvicorn stops that at a large body, and the end of a connection is something to read.
        """
        self.on_gone.add(callback)
        self.flow.resume_reading()

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # pyright: ignore[reportGeneralTypeIssues] -- ASGI allows any

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        super().connection_lost(exc)
        self.is_gone = True
        for callback in tuple(self.on_gone):
            callback()


UVICORN_OPTIONS: dict[str, Any] = {
    "loop": "uvloop",
    "http": HttpConnection,
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "date_header": False,
    "proxy_headers": False,  # `doors.http.scheme_of` reads the one header that matters
    "timeout_graceful_shutdown": DRAIN_SECONDS,
}
