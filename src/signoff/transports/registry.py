"""Choice of the transport for a stream."""

from collections.abc import Callable

from signoff.core.stream import Stream
from signoff.transport import Transport


class TransportRegistry:
    """Factory of transports.

    `unseal` decrypts the URL of a stream; `consumer` is a name that no other process has.
    """

    def __init__(self, unseal: Callable[[bytes], str], consumer: str) -> None:
        self._unseal = unseal
        self._consumer = consumer

    def __call__(self, stream: Stream) -> Transport:
        """Return a transport to the stream's broker, not connected."""
        url = self._unseal(stream.sealed)
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
