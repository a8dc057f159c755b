"""Options of FastStream that every transport sets: raw messages, acknowledged by the transport itself."""

from typing import Any

from faststream import AckPolicy
from faststream.message import StreamMessage

# How long FastStream waits for handlers when a broker stops. A handler has at most one transaction to finish.
GRACE_SECONDS = 2.0


async def _keep_raw(message: Any) -> StreamMessage[Any]:
    """Parse nothing, so that no message is too malformed for FastStream to pass it to its handler."""
    return StreamMessage(raw_message=message, body=b"", message_id="", correlation_id="")


async def _return_raw(message: StreamMessage[Any]) -> Any:
    """Decode nothing: return the raw message."""
    return message.raw_message


BROKER: Any = {"graceful_timeout": GRACE_SECONDS, "logger": None, "apply_types": False}
SUBSCRIBER: Any = {"ack_policy": AckPolicy.MANUAL, "no_reply": True, "parser": _keep_raw, "decoder": _return_raw}
