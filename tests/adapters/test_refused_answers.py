"""Answers that a broker never accepts: each is refused as such, and does not look as if the broker were away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from contracts.test_transport import stream_of
from fakes.tcp_proxy import TcpProxy
from fakes.topic_clients import MqttClient, RabbitClient, TopicClient
from signoff.core.delivery import OutgoingMessage
from signoff.errors import Undelivered
from signoff.transport import Transport
from signoff.transports.registry import TransportRegistry
from support.service_supervisor import epmd_at, free_ports, mosquitto_at, rabbitmq_at, rabbitmq_binary, rabbitmq_env

pytestmark = pytest.mark.anyio
MAX_BYTES = 1000
LARGE, LARGER = (json.dumps("x" * size).encode() for size in (MAX_BYTES, 2 * MAX_BYTES))
USERS = [{"name": name, "password": name, "tags": ""} for name in ("guest", "reader")]
RIGHTS = [
    {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
    {"user": "reader", "vhost": "/", "configure": ".*", "write": "^$", "read": ".*"},
]


class Mosquitto(NamedTuple):
    """A Mosquitto with limits."""

    url: str
    connections: int
    """Number of connections that a refused and an accepted message take at most."""


# Mosquitto 2.0.11 closes the connection after a refusal if the number of queued messages is unlimited.
@pytest.fixture(scope="module", params=[(1000, 1), (0, 2)], ids=["stays connected", "disconnects"])
def mosquitto(
    request: pytest.FixtureRequest, mqtt_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mosquitto]:
    """Yield a Mosquitto with limits; `mqtt_url` skips or fails the test if there is none."""
    max_queued, connections = request.param
    binary, folder = shutil.which("mosquitto"), tmp_path_factory.mktemp("mosquitto")
    assert binary is not None
    folder.chmod(0o777)
    rights = folder / "rights"
    rights.write_text("topic readwrite requests\ntopic readwrite responses\ntopic readwrite a$b\n")
    [port] = free_ports(1)
    limits = f"acl_file {rights}\nmessage_size_limit {MAX_BYTES}\nmax_queued_messages {max_queued}\n"
    limits += f"max_packet_size {2 * MAX_BYTES}\n"
    with mosquitto_at(Path(binary), folder, port, limits):
        yield Mosquitto(f"mqtt://127.0.0.1:{port}", connections)


@pytest.fixture(scope="module")
def rabbitmq(rabbitmq_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a RabbitMQ with limits; `rabbitmq_url` skips or fails the test if there is none."""
    binary, folder = rabbitmq_binary(), tmp_path_factory.mktemp("rabbitmq")
    assert binary is not None
    port, distribution, epmd = free_ports(3)
    environment = rabbitmq_env(folder, port, distribution, epmd)
    definitions = {"users": USERS, "vhosts": [{"name": "/"}], "permissions": RIGHTS}
    (folder / "definitions.json").write_text(json.dumps(definitions))
    with (folder / "rabbitmq.conf").open("a") as config:
        config.write(f"max_message_size = {MAX_BYTES}\nload_definitions = {folder}/definitions.json\n")
    with epmd_at(folder, epmd), rabbitmq_at(binary, folder, port, environment):
        yield f"amqp://guest:guest@127.0.0.1:{port}/"


@contextlib.asynccontextmanager
async def publishing(wire: TopicClient, url: str) -> AsyncIterator[Transport]:
    """Yield the transport of the stream of `wire`, which reaches the broker at `url`."""
    transport = TransportRegistry(lambda _: url, "test")(stream_of(wire))
    try:
        yield transport
    finally:
        await transport.close()


def an_answer(wire: TopicClient, *, body: bytes = b"1", address: str | None = None, **headers: str) -> OutgoingMessage:
    """Return an answer for the response topic, or for `address`."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return OutgoingMessage(address=address or wire.responses, headers={"message-id": "m"} | more, body=body)


@pytest.mark.parametrize(
    ("address", "body"),
    [("a$b", b"1"), ("forbidden", b"1"), ("responses", LARGE), ("responses", LARGER)],
    ids=["name", "rights", "message size", "packet size"],
)
async def test_an_answer_that_mqtt_does_not_take_is_undelivered_and_the_next_one_is_sent(
    address: str, body: bytes, mosquitto: Mosquitto
) -> None:
    wire = MqttClient(mosquitto.url, "")
    async with wire.connected(), TcpProxy(mosquitto.url) as proxy, publishing(wire, proxy.url) as transport:
        with pytest.raises(Undelivered, match="MQTT"):
            await transport.publish(an_answer(wire, address=address, body=body))
        await transport.publish(an_answer(wire))
        assert (await wire.get()).body == 1
        assert proxy.calls <= mosquitto.connections


@pytest.mark.parametrize("reply_to", ["a$b", "forbidden"])
async def test_an_answer_goes_to_the_response_topic_if_mqtt_does_not_take_it_for_the_reply_topic(
    reply_to: str, mosquitto: Mosquitto
) -> None:
    wire = MqttClient(mosquitto.url, "")
    async with wire.connected(), publishing(wire, mosquitto.url) as transport:
        await transport.publish(an_answer(wire, reply_to=reply_to))
        assert (await wire.get()).body == 1


@pytest.mark.parametrize("headers", [{}, {"reply_to": "responses"}])
async def test_an_answer_that_is_too_large_for_rabbitmq_is_undelivered(headers: dict[str, str], rabbitmq: str) -> None:
    async with RabbitClient(rabbitmq, "").connected() as wire, publishing(wire, rabbitmq) as transport:
        with pytest.raises(Undelivered, match="larger than"):
            await transport.publish(an_answer(wire, body=LARGE, **headers))
        await transport.publish(an_answer(wire))
        assert (await wire.get()).body == 1


async def test_one_answer_that_is_too_large_for_rabbitmq_costs_no_other_one_an_attempt(rabbitmq: str) -> None:
    async with RabbitClient(rabbitmq, "").connected() as wire, publishing(wire, rabbitmq) as transport:

        async def publish(body: bytes) -> bool:
            """Publish as deliveries do, which count no attempt while a broker is away; return False if refused."""
            for _ in range(20):
                try:
                    await transport.publish(an_answer(wire, body=body))
                except ConnectionError:
                    await asyncio.sleep(0)  # the client may notice only then that its connection is closed
                except Undelivered:
                    return False
                else:
                    return True
            raise AssertionError("There is no connection.")

        bodies = [LARGE if number in {0, 5} else str(number).encode() for number in range(12)]
        assert await asyncio.gather(*map(publish, bodies)) == [body != LARGE for body in bodies]


async def test_an_answer_that_a_user_of_rabbitmq_may_not_write_is_undelivered(rabbitmq: str) -> None:
    async with RabbitClient(rabbitmq, "").connected() as wire:
        reader = rabbitmq.replace("guest:guest", "reader:reader")
        async with publishing(wire, reader) as transport:
            for _ in range(2):
                with pytest.raises(Undelivered, match="ACCESS_REFUSED"):
                    await transport.publish(an_answer(wire))
