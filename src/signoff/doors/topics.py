"""The door of streams: a message on the request topic becomes a job, whose answer goes to the response topic."""

from signoff.core.ask import Ask
from signoff.core.envelope import parse_envelope
from signoff.core.stream import IncomingMessage, Stream
from signoff.work.accept import accept, stream_caller
from signoff.work.services import Services


async def accept_message(services: Services, stream: Stream, message: IncomingMessage) -> None:
    """Commit the job of one message, after which the message may be acknowledged.

    A message that is not valid becomes a failed job. Raises errors against which another attempt can help.
    """
    envelope = parse_envelope(message.body)
    ask = Ask(
        door="streams",
        caller=await stream_caller(services, stream),
        path=envelope.path,
        body=envelope.body,
        target=envelope.model,
        metadata=envelope.metadata,
        reply_to=stream.name,
    )
    await accept(services, ask, message, envelope.error)
