"""The HTTP deliverer connects to the address that it checked, and to no other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import brotli
import pytest
from aiohttp.abc import ResolveResult

from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, whole
from fakes.resolver import FakeResolver
from fakes.upstream import FakeUpstream, fake_upstream
from fakes.webhook_receiver import WebhookReceiver, hang
from signoff.core.allow_list import AllowList
from signoff.core.delivery import OutgoingMessage
from signoff.deliverers.http import HttpDeliverer
from signoff.errors import AddressRefused, Undelivered

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def a_deliverer(*allowed: str, resolver: FakeResolver | None = None, **more: Any) -> AsyncIterator[HttpDeliverer]:
    deliverer = HttpDeliverer(AllowList(allowed), resolver=resolver, **more)
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.close()


async def post(deliverer: HttpDeliverer, url: str, body: bytes = b"{}") -> int:
    return await deliverer.send(OutgoingMessage(address=url, headers={"webhook-id": "msg_1"}, body=body))


def port_of(receiver: WebhookReceiver) -> str:
    return receiver.url.split(":")[2]


async def test_a_name_is_resolved_once_per_delivery_and_that_address_is_used() -> None:
    resolver = FakeResolver(["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1"])
    async with WebhookReceiver() as receiver, a_deliverer("127.0.0.1", resolver=resolver) as deliverer:
        url = f"http://rebinds.example:{port_of(receiver)}"
        assert await post(deliverer, url) == 200
        assert resolver.hosts == ["rebinds.example"]
        with pytest.raises(AddressRefused):
            await post(deliverer, url)
        assert await post(deliverer, url) == 200
        assert len(receiver.requests) == 2
        assert receiver.requests[0].headers["host"].startswith("rebinds.example:")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(address: str) -> None:
    async with WebhookReceiver() as receiver, a_deliverer(resolver=FakeResolver([address])) as deliverer:
        with pytest.raises(AddressRefused, match=r"hooks\.example is not at a public address"):
            await post(deliverer, f"http://hooks.example:{port_of(receiver)}")
        assert receiver.requests == []


async def test_of_several_addresses_only_the_allowed_ones_are_tried() -> None:
    resolver = FakeResolver(["10.0.0.1", "127.0.0.2", "127.0.0.1"])
    async with WebhookReceiver() as receiver, a_deliverer("127.0.0.1", resolver=resolver) as deliverer:
        assert await post(deliverer, f"http://hooks.example:{port_of(receiver)}") == 200


async def test_a_host_that_is_allowed_by_name_may_have_any_address() -> None:
    async with (
        WebhookReceiver() as receiver,
        a_deliverer("hooks.internal", resolver=FakeResolver(["127.0.0.1"])) as deliverer,
    ):
        assert await post(deliverer, f"http://hooks.internal:{port_of(receiver)}") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_a_literal_private_address_is_refused(host: str) -> None:
    async with WebhookReceiver() as receiver, a_deliverer() as deliverer:
        with pytest.raises(AddressRefused):
            await post(deliverer, f"http://{host}:{port_of(receiver)}")
        assert receiver.requests == []


async def test_a_receiver_that_never_answers_times_out() -> None:
    async with WebhookReceiver() as receiver, a_deliverer("127.0.0.1", total_seconds=0.2) as deliverer:
        receiver.answers = [hang]
        with pytest.raises(Undelivered, match=r"within 0\.2 s"):
            await post(deliverer, receiver.url)


async def test_an_unreachable_receiver_is_an_error_with_its_cause() -> None:
    async with a_deliverer("127.0.0.1", resolver=FakeResolver([])) as deliverer:
        with pytest.raises(Undelivered, match="refused"):
            await post(deliverer, "http://127.0.0.1:9")
    async with WebhookReceiver() as receiver, a_deliverer("127.0.0.1") as deliverer:
        receiver.answers = ["cut"]
        with pytest.raises(Undelivered):
            await post(deliverer, receiver.url)
        with pytest.raises(Undelivered):
            await post(deliverer, receiver.url.replace("http", "https"))


async def test_a_large_message_arrives_whole() -> None:
    async with WebhookReceiver() as receiver, a_deliverer("127.0.0.1") as deliverer:
        body = b'"' + b"x" * 900_000 + b'"'
        assert await post(deliverer, receiver.url, body) == 200
        assert receiver.requests[0].body == body


class _UnknownName(FakeResolver):
    """A resolver that knows no name."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        raise OSError(-2, "Name or service not known")


async def test_a_name_inside_of_the_network_and_an_unknown_name_get_the_same_answer() -> None:
    messages = list[str]()
    for resolver in (FakeResolver(["10.0.0.1"]), _UnknownName()):
        async with a_deliverer(resolver=resolver) as deliverer:
            with pytest.raises(AddressRefused) as refusal:
                await post(deliverer, "http://printer.example/")
            messages.append(refusal.value.message)
    assert messages[0] == messages[1]


@pytest.mark.parametrize("coding", ["br", "compress"])
async def test_the_status_counts_whatever_coding_the_answer_has(coding: str) -> None:
    async with coded_receiver(brotli.compress(b"{}"), coding) as receiver, a_deliverer("127.0.0.1") as deliverer:
        assert await post(deliverer, receiver.url) == 200


async def test_the_answer_of_a_guardrail_is_decoded() -> None:
    async with coded_receiver(brotli.compress(b"[1]"), "br") as receiver, a_deliverer("127.0.0.1") as deliverer:
        request = OutgoingMessage(address=receiver.url, headers={}, body=b"{}")
        assert await deliverer.ask(request, seconds=LIMIT_SECONDS) == b"[1]"
    async with coded_receiver(b"[1]", "compress") as receiver, a_deliverer("127.0.0.1") as deliverer:
        request = OutgoingMessage(address=receiver.url, headers={}, body=b"{}")
        with pytest.raises(Undelivered, match="cannot be decoded"):
            await deliverer.ask(request, seconds=LIMIT_SECONDS)


def coded_receiver(body: bytes, coding: str) -> FakeUpstream:
    """Return a receiver that answers with a coded body."""

    async def script(_: RecordedRequest) -> Reply:
        return whole(body, headers={"content-encoding": coding})

    return fake_upstream(script)
