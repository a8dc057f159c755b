"""The door of streams: a message on the request topic becomes a job, whose answer goes to the response topic."""

from signoff.core.ask import Ask
from signoff.core.delivery import ReplyAddress
from signoff.core.envelope import Envelope, parse_envelope
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import SignoffError
from signoff.work.accept import accept, decompressed, stream_caller
from signoff.work.services import Services
from signoff.work.tracing import traced_message


async def accept_message(services: Services, stream: Stream, message: IncomingMessage) -> None:
    """Commit the job of one message, after which the message may be acknowledged.

    A message that is not valid becomes a failed job. Raises errors against which another attempt can help.
    """
    message, envelope = _open(services, message)
    ask = Ask(
        door="streams",
        caller=await stream_caller(services, stream),
        path=envelope.path,
        body=envelope.body,
        requires_members=True,
        target=envelope.model,
        metadata=envelope.metadata,
        reply_to=stream.name,
        reply=ReplyAddress(topic=message.reply_to, correlation_id=message.correlation_id),
    )
    with traced_message(services, stream):
        await accept(services, ask, message, envelope.error)


def _open(services: Services, message: IncomingMessage) -> tuple[IncomingMessage, Envelope]:
    """Return the message with its body decompressed, and what the body says."""
    try:
        message = decompressed(services, message)
    except SignoffError as error:
        return message, Envelope(error=error)
    return message, parse_envelope(message.body)
