"""Streams over MQTT 5: a session that outlives its process, QoS 1, acknowledged by hand."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import zmqtt
from faststream.mqtt import MQTTBroker

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

KEEPALIVE_SECONDS = 10
NEVER_EXPIRES = 0xFFFFFFFF
# Mosquitto 2.0.11 exceeds a small Receive Maximum, on which the client must disconnect.
MIN_IN_FLIGHT = 64
ID_PROPERTIES = ("message-id", "message_id")
# Maximum number of bytes of a packet beside its body and its texts.
PACKET_BYTES = 64
# A topic with one of these cannot be published to.
WILDCARDS = {"+", "#", "\0"}


class MqttTransport:
    """See `transport.Transport`. The session belongs to the stream, so only one process at a time may listen."""

    is_exclusive = True

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._publisher = PublisherConnection(lambda _: self._broker(), MQTTBroker.connect)

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """See `transport.Transport`.

        The first messages of a resumed session count as redelivered, because MQTT does not say which ones are.
        """
        watch, handlers, received = LivenessWatch(), self._stream.max_handlers, 0
        in_flight = max(MIN_IN_FLIGHT, 4 * handlers)
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
            **SUBSCRIBER,
        )

        @subscriber
        async def handle(message: zmqtt.Message) -> None:
            nonlocal received
            received += 1
            is_redelivery = broker.connection_info.session_present and received <= in_flight
            try:
                await on_message(_incoming(message, is_redelivery=is_redelivery))
                await message.ack()
            except Exception as error:  # noqa: BLE001 -- `listen` fails, and the broker sends the message again
                watch.fail(error)

        async with stopping(broker.stop), stopping(lambda: _disconnect(broker)):
            async with asyncio.timeout(ANSWER_SECONDS):
                await broker.start()
            on_ready()
            await watch.run(lambda: _ensure_connected(broker))

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            if (reply_to := message.headers.get("reply-to")) is not None:
                with contextlib.suppress(Undelivered):
                    await self._publish(message, reply_to)
                    return
            await self._publish(message, message.address)

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    async def _publish(self, message: OutgoingMessage, topic: str) -> None:
        broker, properties = await self._publisher.get(), _properties(message)
        try:
            _check_size(broker, message, topic)
            client = await broker.connect()
            await client.publish(topic, message.body, qos=zmqtt.QoS.AT_LEAST_ONCE, properties=properties)
        except (zmqtt.MQTTInvalidTopicError, zmqtt.MQTTPublishError) as error:
            await self._mark_lost_if_closed(broker)
            raise Undelivered(f"The MQTT broker rejected the answer for {topic!r}: {error}") from error
        except Undelivered:
            raise
        except Exception:
            self._publisher.mark_lost(broker)
            raise

    async def _mark_lost_if_closed(self, broker: MQTTBroker) -> None:
        """Look at a connection after a refusal, after which Mosquitto 2.0.11 closes some, and others go on."""
        try:
            await _ensure_connected(broker)
        except Exception:  # noqa: BLE001 -- whatever the cause is, the next message needs a new connection
            self._publisher.mark_lost(broker)

    def _broker(self, **options: Any) -> MQTTBroker:
        return MQTTBroker(
            self._url,
            keepalive=KEEPALIVE_SECONDS,
            version="5.0",
            reconnect=zmqtt.ReconnectConfig(enabled=False),
            mqtt_connect_timeout=ANSWER_SECONDS,
            **BROKER,
            **options,
        )


def _incoming(message: zmqtt.Message, *, is_redelivery: bool) -> IncomingMessage:
    """Return the message; its id is a user property, as MQTT itself has no message ids."""
    properties = message.properties or zmqtt.PublishProperties()
    names = {name.lower(): value for name, value in properties.user_properties}
    correlation, topic = properties.correlation_data, properties.response_topic
    return IncomingMessage(
        message.payload,
        next((names[name] for name in ID_PROPERTIES if name in names), None),
        is_redelivery=is_redelivery,
        encoding=names.get("content-encoding"),
        correlation_id=None if correlation is None else correlation.decode("latin-1"),
        reply_to=None if topic is None or WILDCARDS & {*topic} else topic,
    )


def _check_size(broker: MQTTBroker, message: OutgoingMessage, topic: str) -> None:
    """Raise Undelivered if the broker has said that it takes no packet of this size; it would close the connection."""
    properties = broker.connection_info.properties
    limit = None if properties is None else properties.maximum_packet_size
    message_id = message.headers["message-id"]
    texts = (topic, message_id, message.headers.get("correlation-id", message_id))
    size_bytes = len(message.body) + sum(len(text.encode()) for text in texts) + PACKET_BYTES
    if limit is not None and size_bytes > limit:
        raise Undelivered(f"The answer has {size_bytes} bytes as a packet, and the MQTT broker takes at most {limit}.")


def _properties(message: OutgoingMessage) -> zmqtt.PublishProperties:
    message_id = message.headers["message-id"]
    return zmqtt.PublishProperties(
        correlation_data=message.headers.get("correlation-id", message_id).encode("latin-1"),
        content_type="application/json",
        user_properties=(("message-id", message_id),),
    )


async def _ensure_connected(broker: MQTTBroker) -> None:
    if not await broker.ping(timeout=ANSWER_SECONDS / 2):
        raise ConnectionError("The MQTT broker does not respond.")


async def _disconnect(broker: MQTTBroker) -> None:
    """Disconnect before FastStream unsubscribes, so that the session keeps messages while no process listens."""
    client = await broker.connect()
    await client.disconnect()
