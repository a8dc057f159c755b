"""Streams: requests from one topic of a message broker, and answers on another."""

import re
from urllib.parse import urlsplit

import msgspec

# Transports by the scheme of the URL of the broker.
TRANSPORTS = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "nats": "nats",
    "kafka": "kafka",
    "redis": "redis",
    "rediss": "redis",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
}
_SCHEMES = ", ".join(f"{scheme}://" for scheme in TRANSPORTS)
MAX_HANDLERS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?")
MAX_TOPIC_BYTES = 255


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A configured stream."""

    name: str
    """Unique name of the stream."""
    scheme: str
    """Scheme of the URL of the broker; a key of TRANSPORTS."""
    host: str
    """Host and port of the broker, or several of them; the part of the URL that may be shown."""
    sealed: bytes
    """Encrypted URL of the broker, which may hold a password."""
    requests: str
    """Topic that requests come from."""
    responses: str
    """Topic that answers go to."""
    max_handlers: int = 16
    """Maximum number of messages that are handled at once."""
    backoff_max_seconds: float = 30
    """Longest wait before the next attempt to connect to the broker."""
    user: str | None = None
    """Email of the user whose limits and models apply; None for a caller without an account."""

    @property
    def transport(self) -> str:
        """Name of the transport to its broker."""
        return TRANSPORTS[self.scheme]


class IncomingMessage(msgspec.Struct, frozen=True):
    """A message of a request topic."""

    body: bytes
    """The message as the broker delivered it, with its compression."""
    id: str | None = None
    """Id of the transport, the same at every delivery of the message; None if the transport has none."""
    is_redelivery: bool = False
    """True if a message without an id was delivered before."""
    encoding: str | None = None
    """Compression of the body, as the header `Content-Encoding` of HTTP names it; None for none."""
    correlation_id: str | None = None
    """Id of the sender's own that the answer carries too; None for none."""
    reply_to: str | None = None
    """Topic for the answer instead of that of the stream; None for that of the stream."""


class ListenerStatus(msgspec.Struct, frozen=True):
    """State of a stream in one process."""

    ok: bool
    """True if its messages are being received."""
    error: str | None = None
    """Fault in words, without a password; None while there is none."""


def public_address(url: str) -> tuple[str, str]:
    """Return the scheme and the hosts of a URL, which may be shown.

    Both are empty for an invalid URL. The hosts are empty if they could be a part of a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    hosts = parts.netloc.rpartition("@")[2]
    is_ambiguous = "@" in parts.path + parts.query + parts.fragment
    return parts.scheme, "" if is_ambiguous or not all(HOST.fullmatch(host) for host in hosts.split(",")) else hosts


def stream_fault(stream: Stream) -> str | None:
    """Return an error message for the first invalid value in `stream`; None for a valid stream."""
    if not NAME.fullmatch(stream.name):
        return "`name` must be 1 to 64 letters, digits and _.- characters, and begin with a letter or digit."
    if stream.scheme not in TRANSPORTS:
        return f"`url` must begin with one of {_SCHEMES}."
    if not stream.host:
        return "`url` must name a host, or host:port; write / ? # @ in a password as %2F %3F %23 %40."
    if not 0 < stream.max_handlers <= MAX_HANDLERS:
        return f"`max_handlers` must be 1 to {MAX_HANDLERS} (got {stream.max_handlers})."
    if not 0 < stream.backoff_max_seconds <= 3600:
        return f"`backoff_max_seconds` must be more than 0 and at most 3600 (got {stream.backoff_max_seconds})."
    return _topic_fault(stream)


def _topic_fault(stream: Stream) -> str | None:
    for name, topic in (("requests", stream.requests), ("responses", stream.responses)):
        if not _is_topic(topic):
            return f"`{name}` must be a topic of 1 to {MAX_TOPIC_BYTES} bytes, printable and without blanks."
    if stream.requests == stream.responses:
        return "`requests` and `responses` must be different topics."
    return None


def _is_topic(name: str) -> bool:
    return name.isprintable() and " " not in name and 0 < len(name.encode()) <= MAX_TOPIC_BYTES
