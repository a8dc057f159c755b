"""The streams' door: a message on a topic is an ask, and its answer goes to the stream's other topic."""

from __future__ import annotations

from signoff.core.ask import Ask
from signoff.core.envelope import parse_envelope
from signoff.core.stream import IncomingMessage, Stream
from signoff.work.accept import accept, stream_caller
from signoff.work.services import Services


async def accept_message(services: Services, stream: Stream, arrived: IncomingMessage) -> None:
    """One message; its job is committed, and it may be acknowledged. Raises what another try may help against."""
    envelope = parse_envelope(arrived.body)
    ask = Ask(
        door="streams",
        caller=await stream_caller(services, stream),
        path=envelope.path,
        body=envelope.body,
        target=envelope.model,
        metadata=envelope.metadata,
        reply_to=stream.name,
    )
    await accept(services, ask, arrived, envelope.error)
