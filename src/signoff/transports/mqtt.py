"""Streams through MQTT 5: one session that outlives its process, QoS 1, acknowledged by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmqtt
from faststream import AckPolicy
from faststream.mqtt import MQTTBroker

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, GRACE_SECONDS, LivenessWatch, as_it_came, ended, unread
from signoff.transports.publisher import PublisherConnection

KEEPALIVE_SECONDS = 10
NEVER_EXPIRES = 0xFFFFFFFF
# Mosquitto 2.0.11 exceeds a small Receive Maximum, for which the client has to hang up.
LEAST_IN_FLIGHT = 64
ID_PROPERTIES = ("message-id", "message_id")


class MqttTransport:
    """See `transport.Transport`. The session belongs to the stream, so one process at a time has it."""

    is_exclusive = True

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._out = PublisherConnection(lambda _: self._broker(), MQTTBroker.connect)

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`. What comes first may have come before: MQTT tells us nothing else of that."""
        watch, handlers, came = LivenessWatch(), self._stream.max_handlers, 0
        in_flight = max(LEAST_IN_FLIGHT, 4 * handlers)
        broker = self._broker(
            client_id=f"signoff-{self._stream.name}",
            clean_session=False,
            session_expiry_interval=NEVER_EXPIRES,
            receive_maximum=in_flight,
        )
        subscriber: Any = broker.subscriber(
            self._stream.requests,
            qos=zmqtt.QoS.AT_LEAST_ONCE,
            max_workers=handlers,
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            parser=as_it_came,
            decoder=unread,
        )

        @subscriber
        async def handle(message: zmqtt.Message) -> None:
            nonlocal came
            came += 1
            resumed = broker.connection_info.session_present
            try:
                await take(
                    IncomingMessage(message.payload, _id_of(message), is_redelivery=resumed and came <= in_flight)
                )
                await message.ack()
            except Exception as error:  # noqa: BLE001 -- the line is lost, and the message comes again
                watch.fail(error)

        async with ended(broker.stop), ended(lambda: _hung_up(broker)):
            async with asyncio.timeout(ANSWER_SECONDS):
                await broker.start()
            is_up()
            await watch.run(lambda: _ensure_reached(broker))

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._out.connected()
            try:
                await broker.publish(
                    message.body,
                    message.address,
                    qos=zmqtt.QoS.AT_LEAST_ONCE,
                    headers={"message-id": message.headers["message-id"]},
                    correlation_id=message.headers["message-id"],
                )
            except Exception:
                self._out.lost(broker)
                raise

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._out.close()

    def _broker(self, **more: Any) -> MQTTBroker:
        return MQTTBroker(
            self._url,
            keepalive=KEEPALIVE_SECONDS,
            version="5.0",
            reconnect=zmqtt.ReconnectConfig(enabled=False),
            mqtt_connect_timeout=ANSWER_SECONDS,
            graceful_timeout=GRACE_SECONDS,
            logger=None,
            apply_types=False,
            **more,
        )


def _id_of(message: zmqtt.Message) -> str | None:
    """What the sender calls the message, in a user property; MQTT itself has no names for messages."""
    told = dict(message.properties.user_properties) if message.properties else {}
    return next((told[name] for name in ID_PROPERTIES if name in told), None)


async def _ensure_reached(broker: MQTTBroker) -> None:
    if not await broker.ping(timeout=ANSWER_SECONDS / 2):
        raise ConnectionError("the MQTT broker does not answer")


async def _hung_up(broker: MQTTBroker) -> None:
    """Leaves before FastStream unsubscribes: what comes while nobody listens waits in the session."""
    client = await broker.connect()
    await client.disconnect()
