"""Streams over Redis streams: a consumer group, acknowledgements, and a claim of the messages of dead processes."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser.binary import BinaryMessageFormatV1
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

GROUP = "signoff"
POLL_MILLISECONDS = 500
CLAIM_POLL_MILLISECONDS = 2000
# Another process claims a message after this time without an acknowledgement or a claim by its own process.
IDLE_MILLISECONDS = 15_000
# Every process leaves a consumer in the group. Consumers idle for longer are deleted.
STALE_CONSUMER_MILLISECONDS = 3_600_000
# Fields of a message that may have its body, in order of preference.
FIELDS = (b"__data__", b"data", b"message", b"body")
FASTSTREAM_FIELD = b"__data__"


class RedisTransport:
    """See `transport.Transport`. `consumer` is a name in the group that no other process has."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream, *, consumer: str) -> None:
        self._url = url
        self._stream = stream
        self._consumer = consumer
        self._publisher = PublisherConnection(lambda _: self._broker(), RedisBroker.connect)

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, requests, broker, unacked = LivenessWatch(), self._stream.requests, self._broker(), set[bytes]()
        async with stopping(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                client = cast("Any", await broker.connect())
                await _ensure_group(client, requests)

                async def handle(message: Mapping[str, Any]) -> None:
                    [message_id] = message["message_ids"]
                    unacked.add(message_id)
                    try:
                        await on_message(IncomingMessage(_message_body(message["data"]), message_id.decode()))
                        await client.xack(requests, GROUP, message_id)
                    except Exception as error:  # noqa: BLE001 -- `listen` fails, and the message is claimed again
                        watch.fail(error)
                    finally:
                        unacked.discard(message_id)

                async def check() -> None:
                    await _ensure_consumed(client, broker, requests)
                    if unacked:
                        await client.xclaim(requests, GROUP, self._consumer, 0, list(unacked), justid=True)

                self._subscribe(broker, handle, max_records=self._stream.max_handlers)
                self._subscribe(broker, handle, min_idle_time=IDLE_MILLISECONDS)
                await broker.start()
            on_ready()
            await watch.run(check)

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            client = cast("Any", await (await self._publisher.get()).connect())
            fields = {"message-id": message.headers["message-id"], "data": message.body}
            try:
                await client.xadd(message.address, fields)
            except (RedisConnectionError, RedisTimeoutError):
                raise
            except RedisError as error:
                raise Undelivered(f"Redis rejected the answer for {message.address!r}: {error}") from error

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    def _subscribe(self, broker: RedisBroker, handle: Any, **options: Any) -> None:
        poll_milliseconds = CLAIM_POLL_MILLISECONDS if "min_idle_time" in options else POLL_MILLISECONDS
        options |= {"group": GROUP, "consumer": self._consumer, "polling_interval": poll_milliseconds}
        source: Any = StreamSub(self._stream.requests, **options)
        subscriber = cast("Any", broker).subscriber(
            stream=source,
            max_workers=self._stream.max_handlers,
            **SUBSCRIBER,
        )
        subscriber(handle)

    def _broker(self) -> RedisBroker:
        return cast("Any", RedisBroker)(  # its type hints do not allow `logger=None`
            self._url,
            socket_connect_timeout=5,
            socket_timeout=ANSWER_SECONDS,
            health_check_interval=15,
            **BROKER,
        )


async def _ensure_group(client: Any, stream: str) -> None:
    """Create the group, which reads from the start of the stream, and delete stale consumers."""
    with contextlib.suppress(ResponseError):  # the group exists
        await client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    await _ensure_group_exists(client, stream)
    with contextlib.suppress(ResponseError):  # the server does not allow scripts
        await client.eval(_DELETE_STALE_CONSUMERS, 1, stream, GROUP, STALE_CONSUMER_MILLISECONDS)


# Redis deletes pending messages with their consumer, so only consumers without any are deleted. Scripts are atomic.
_DELETE_STALE_CONSUMERS = """
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for at = 1, #fields, 2 do one[fields[at]] = fields[at + 1] end
  if one.pending == 0 and one.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one.name)
  end
end
"""


async def _ensure_group_exists(client: Any, stream: str) -> None:
    groups = await client.xinfo_groups(stream)
    if GROUP.encode() not in [group["name"] for group in groups]:
        raise ConnectionError(f"The consumer group {GROUP} of the stream {stream} was deleted.")


async def _ensure_consumed(client: Any, broker: RedisBroker, stream: str) -> None:
    await _ensure_group_exists(client, stream)
    if not all(subscriber.running for subscriber in broker.subscribers):
        raise ConnectionError("FastStream has stopped reading the stream.")


def _message_body(fields: Mapping[bytes, bytes]) -> bytes:
    """Return the message's body: the field with one of the names in FIELDS, or else the only field."""
    if FASTSTREAM_FIELD in fields:
        return BinaryMessageFormatV1.parse(fields[FASTSTREAM_FIELD])[0]
    body = next((fields[name] for name in FIELDS if name in fields), None)
    if body is not None:
        return body
    return next(iter(fields.values())) if len(fields) == 1 else b""
