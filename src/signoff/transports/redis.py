"""Streams through Redis streams: a consumer group, acknowledgements, and messages of the dead claimed anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser.binary import BinaryMessageFormatV1
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as Late

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, GRACE_SECONDS, LivenessWatch, as_it_came, ended, unread
from signoff.transports.publisher import PublisherConnection

GROUP = "signoff"
POLL_MILLISECONDS = 500
CLAIM_POLL_MILLISECONDS = 2000
# A message that nobody has acknowledged, nor claimed again while it was taken, is somebody else's after this.
IDLE_MILLISECONDS = 15_000
# Every process that ever was leaves its name in the group.
SILENT_MILLISECONDS = 3_600_000
FIELDS = (b"__data__", b"data", b"message", b"body")
FASTSTREAM = b"__data__"


class RedisTransport:
    """See `transport.Transport`. `consumer` is a name in the group that only this process has."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream, *, consumer: str) -> None:
        self._url = url
        self._stream = stream
        self._consumer = consumer
        self._out = PublisherConnection(lambda _: self._broker(), RedisBroker.connect)

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, requests, broker, held = LivenessWatch(), self._stream.requests, self._broker(), set[bytes]()
        async with ended(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                client = cast("Any", await broker.connect())
                await _ensure_group(client, requests)

                async def handle(message: Mapping[str, Any]) -> None:
                    [place] = message["message_ids"]
                    held.add(place)
                    try:
                        await take(IncomingMessage(_body_of(message["data"]), place.decode()))
                        await client.xack(requests, GROUP, place)
                    except Exception as error:  # noqa: BLE001 -- the line is lost, and the message comes again
                        watch.fail(error)
                    finally:
                        held.discard(place)

                async def look() -> None:
                    await _ensure_consumed(client, broker, requests)
                    if held:
                        await client.xclaim(requests, GROUP, self._consumer, 0, list(held), justid=True)

                self._subscribe(broker, handle, max_records=self._stream.max_handlers)
                self._subscribe(broker, handle, min_idle_time=IDLE_MILLISECONDS)
                await broker.start()
            is_up()
            await watch.run(look)

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            client = cast("Any", await (await self._out.connected()).connect())
            fields = {"message-id": message.headers["message-id"], "data": message.body}
            try:
                await client.xadd(message.address, fields)
            except (Lost, Late):
                raise
            except RedisError as error:
                raise Undelivered(f"Redis did not take the answer: {error}") from error

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._out.close()

    def _subscribe(self, broker: RedisBroker, handle: Any, **how: Any) -> None:
        polling = CLAIM_POLL_MILLISECONDS if "min_idle_time" in how else POLL_MILLISECONDS
        place: Any = StreamSub(
            self._stream.requests, group=GROUP, consumer=self._consumer, polling_interval=polling, **how
        )
        subscriber = cast("Any", broker).subscriber(
            stream=place,
            max_workers=self._stream.max_handlers,
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            parser=as_it_came,
            decoder=unread,
        )
        subscriber(handle)

    def _broker(self) -> RedisBroker:
        return cast("Any", RedisBroker)(  # its own types do not know that no logger is one
            self._url,
            socket_connect_timeout=5,
            socket_timeout=ANSWER_SECONDS,
            health_check_interval=15,
            graceful_timeout=GRACE_SECONDS,
            logger=None,
            apply_types=False,
        )


async def _ensure_group(client: Any, stream: str) -> None:
    """The group reads from the stream's beginning: what came before us is asked, too."""
    with contextlib.suppress(ResponseError):  # there is one
        await client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    await _ensure_there(client, stream)
    with contextlib.suppress(ResponseError):  # no scripts are allowed
        await client.eval(_FORGET_THE_SILENT, 1, stream, GROUP, SILENT_MILLISECONDS)


# Those who hold nothing: Redis forgets what they hold with them, so nobody may be given anything in between.
_FORGET_THE_SILENT = """
for _, told in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for at = 1, #told, 2 do one[told[at]] = told[at + 1] end
  if one.pending == 0 and one.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one.name)
  end
end
"""


async def _ensure_there(client: Any, stream: str) -> None:
    groups = await client.xinfo_groups(stream)
    if GROUP.encode() not in [group["name"] for group in groups]:
        raise ConnectionError(f"the group {GROUP} is gone")


async def _ensure_consumed(client: Any, broker: RedisBroker, stream: str) -> None:
    await _ensure_there(client, stream)
    if not all(subscriber.running for subscriber in broker.subscribers):
        raise ConnectionError("FastStream has given up reading")


def _body_of(fields: Mapping[bytes, bytes]) -> bytes:
    """The message: what stands in the field that is named for it, else in the only one."""
    if FASTSTREAM in fields:
        return BinaryMessageFormatV1.parse(fields[FASTSTREAM])[0]
    named = next((fields[name] for name in FIELDS if name in fields), None)
    if named is not None:
        return named
    return next(iter(fields.values())) if len(fields) == 1 else b""
