"""A fake model upstream, whose behaviour is selected by a script or by the first part of a path: `/cut-stream/v1/…`."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from fakes.behaviours import BEHAVIOURS
from fakes.http_server import FakeServer, RecordedRequest, Reply

Script = Callable[[RecordedRequest], Awaitable[Reply]]


class FakeUpstream(FakeServer):
    """A model server that replies as a script or the path of the request says."""

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self._script = script

    def at(self, behaviour: str) -> str:
        """Return the base URL at which the server has this behaviour."""
        assert behaviour.partition("/")[0] in BEHAVIOURS, f"{behaviour} is none of {', '.join(BEHAVIOURS)}"
        return f"{self.url}/{behaviour}"

    def reply_unread(self, request: RecordedRequest) -> Reply | None:
        reply = None if self._script else BEHAVIOURS[request.path.split("/")[1]]
        return reply if isinstance(reply, Reply) and not reply.reads_body else None

    async def reply(self, request: RecordedRequest) -> Reply:
        reply = self._script or BEHAVIOURS[request.path.split("/")[1]]
        return reply if isinstance(reply, Reply) else await reply(request)


def fake_upstream(script: Script | None = None, *, port: int = 0) -> FakeUpstream:
    """Return a fake upstream for `async with`; without a script, the path selects the behaviour."""
    return FakeUpstream(script, port=port)


@contextmanager
def full_upstream() -> Generator[str, None, None]:
    """Yield the address of a server that accepts no connection, because its backlog is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting: list[socket.socket] = []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()
