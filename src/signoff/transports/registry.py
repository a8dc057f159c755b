"""Choice of the transport for a stream."""

from collections.abc import Callable

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import Stream
from signoff.infra.broker_faults import described_faults
from signoff.transport import OnMessage, Transport


class DescribedTransport:
    """Transport that converts errors of its client library to ConnectionErrors, whose texts have no secrets."""

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport = transport
        self._url = url

    @property
    def is_exclusive(self) -> bool:
        """See `transport.Transport`."""
        return self._transport.is_exclusive

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        with described_faults(self._url):
            await self._transport.listen(on_message, on_ready)

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        with described_faults(self._url):
            await self._transport.publish(message)

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._transport.close()


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
        return DescribedTransport(self._transport(stream, url), url)

    def _transport(self, stream: Stream, url: str) -> Transport:
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
