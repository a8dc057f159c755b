"""Which transport speaks to a stream's broker. Each is imported when the first stream needs it."""

from __future__ import annotations

from collections.abc import Callable

from signoff.core.stream import Stream
from signoff.transport import Transport


class TransportRegistry:
    """Makes transports: `opened` opens a sealed address, `consumer` is a name that only this process has."""

    def __init__(self, opened: Callable[[bytes], str], consumer: str) -> None:
        self._opened = opened
        self._consumer = consumer

    def __call__(self, stream: Stream) -> Transport:
        """One to the stream's broker, not connected."""
        url = self._opened(stream.sealed)
        match stream.transport:
            case "rabbitmq":
                from signoff.transports.rabbitmq import RabbitTransport

                return RabbitTransport(url, stream)
            case "nats":
                from signoff.transports.nats import NatsTransport

                return NatsTransport(url, stream)
            case "kafka":
                from signoff.transports.kafka import KafkaTransport

                return KafkaTransport(url, stream)
            case "redis":
                from signoff.transports.redis import RedisTransport

                return RedisTransport(url, stream, consumer=self._consumer)
            case _:
                from signoff.transports.mqtt import MqttTransport

                return MqttTransport(url, stream)
