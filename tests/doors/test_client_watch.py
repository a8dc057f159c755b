"""Departures of clients: noticed by the connection, or by a task under servers whose connections do not tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from signoff.doors.http import CONNECTION, ClientWatch, scheme_of
from signoff.runtime.background import Background
from signoff.work.services import Services

pytestmark = pytest.mark.anyio


class Connection:
    """Connection as `server.protocol.ClientConnection` has it."""

    def __init__(self) -> None:
        self.is_gone = False
        self.on_gone = set[Callable[[], None]]()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the connection is lost."""
        self.on_gone.add(callback)

    def lose(self) -> None:
        """Lose the connection."""
        self.is_gone = True
        for callback in tuple(self.on_gone):
            callback()


class Client:
    """Client behind an ASGI server, with a connection that tells when it is lost, or without."""

    def __init__(self, *, tells: bool) -> None:
        self.connection = Connection()
        self.scope: dict[str, Any] = {"extensions": {CONNECTION: self.connection}} if tells else {}
        self._left = asyncio.Event()
        self.services = cast("Services", SimpleNamespace(runtime=SimpleNamespace(background=Background())))

    def leave(self) -> None:
        """Leave."""
        self.connection.lose()
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        """Return the message of ASGI for a client that has left, once it has."""
        await self._left.wait()
        return {"type": "http.disconnect"}

    def watch(self) -> ClientWatch:
        """Return a watch of this client."""
        return ClientWatch(self.services, self.scope, self.receive)


TELLS = pytest.mark.parametrize("tells", [True, False])


@TELLS
async def test_a_client_that_leaves_cancels_the_work_and_nothing_after_it(*, tells: bool) -> None:
    client, began, steps = Client(tells=tells), asyncio.Event(), list[str]()

    async def serve() -> None:
        with client.watch():
            began.set()
            await asyncio.Event().wait()
        steps.append("after")
        await asyncio.sleep(0)
        steps.append("end")

    task = asyncio.create_task(serve())
    await began.wait()
    client.leave()
    await task

    assert steps == ["after", "end"]
    assert not client.connection.on_gone


@TELLS
async def test_a_client_that_has_left_before_cancels_the_work_at_its_first_wait(*, tells: bool) -> None:
    client = Client(tells=tells)
    client.leave()
    with client.watch():
        await asyncio.Event().wait()


@TELLS
async def test_a_client_that_has_left_before_does_not_disturb_work_that_never_waits(*, tells: bool) -> None:
    client = Client(tells=tells)
    client.leave()
    with client.watch():
        pass
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@TELLS
async def test_a_client_that_leaves_later_disturbs_nobody(*, tells: bool) -> None:
    client = Client(tells=tells)
    with client.watch():
        await asyncio.sleep(0)
    client.leave()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@TELLS
async def test_an_error_of_the_work_is_raised(*, tells: bool) -> None:
    with pytest.raises(ValueError, match="mine"), Client(tells=tells).watch():
        raise ValueError("mine")


@TELLS
async def test_a_cancellation_of_another_cause_is_raised(*, tells: bool) -> None:
    client, began = Client(tells=tells), asyncio.Event()

    async def serve() -> None:
        with client.watch():
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await began.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize(
    ("client", "forwarded", "scheme"),
    [
        ("127.0.0.1", b"https", "https"),
        ("::1", b"HTTPS ", "https"),
        ("127.0.0.1", b"", "http"),
        ("127.0.0.1", b"javascript", "http"),
        ("10.0.0.7", b"https", "http"),
    ],
)
def test_a_proxy_on_this_host_says_which_scheme_the_client_uses(client: str, forwarded: bytes, scheme: str) -> None:
    headers = [(b"x-forwarded-proto", forwarded)]
    assert scheme_of({"scheme": "http", "client": (client, 5000), "headers": headers}) == scheme


def test_without_a_client_address_the_scheme_is_that_of_the_connection() -> None:
    assert scheme_of({"scheme": "https", "client": None, "headers": [(b"x-forwarded-proto", b"http")]}) == "https"
