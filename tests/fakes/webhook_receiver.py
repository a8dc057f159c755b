"""A receiver of webhooks, which records messages and sends the replies of a test."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

from fakes.http_server import FakeServer, RecordedRequest, Reply, raw

SECRET = "whsec_" + base64.b64encode(b"a key of twenty-four bytes").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another key that is also quite long").decode()


def message_id(request: RecordedRequest) -> str:
    """Return the id of a message."""
    return request.headers["webhook-id"]


class WebhookReceiver(FakeServer):
    """A server that receives webhooks."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self.answers: list[int | str | Callable[[RecordedRequest], Awaitable[Any]]] = []
        """The next answers: a status, "cut", or a function to wait for before a 200. After them, 200."""

    @property
    def url(self) -> str:
        """The address for messages."""
        return f"{super().url}/hook?token=t0ken"

    async def reply(self, request: RecordedRequest) -> Reply:
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "cut":
            return raw(end="close")
        if callable(answer):
            await answer(request)
        status = answer if isinstance(answer, int) else 200
        return Reply(status=status, headers={"location": "/elsewhere"} if 300 <= status < 400 else {})


async def hang(_: RecordedRequest) -> None:
    """Wait without end."""
    await asyncio.Event().wait()
