"""A stream: messages that come from one topic of somebody's broker, and their answers on another."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

# What speaks to the broker at an address, by the address's scheme.
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
MOST_HANDLERS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?")
LONGEST_TOPIC = 255


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream. `sealed` is its broker's address, which may hold a password; `scheme` and `host` are what may be seen
    of that. `user` is the e-mail address of whoever's limits and models apply; None stands for nobody in particular.
    """

    name: str
    scheme: str
    host: str
    sealed: bytes
    requests: str
    responses: str
    max_handlers: int = 16
    backoff_max_seconds: float = 30
    user: str | None = None

    @property
    def transport(self) -> str:
        """What speaks to its broker."""
        return TRANSPORTS[self.scheme]


class IncomingMessage(msgspec.Struct, frozen=True):
    """A message that came. `id` is the transport's own, the same whenever the message comes again; None where it has
    none, and then `again` says whether it came before.
    """

    body: bytes
    id: str | None = None
    is_redelivery: bool = False


class ListenerStatus(msgspec.Struct, frozen=True):
    """How a stream is, in one process: whether its messages are taken, and what is wrong if they are not."""

    ok: bool
    error: Annotated[str | None, "in words, without a password"] = None


def public_address(url: str) -> tuple[str, str]:
    """The scheme and the hosts of an address: all of it that may be shown. Both are empty where it cannot be read, and
    the hosts where what stands for them may be the beginning of a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    hosts = parts.netloc.rpartition("@")[2]
    is_cut = "@" in parts.path + parts.query + parts.fragment
    return parts.scheme, "" if is_cut or not all(HOST.fullmatch(host) for host in hosts.split(",")) else hosts


def stream_fault(stream: Stream) -> str | None:
    """Why the stream cannot be, or None."""
    topics = {"requests": stream.requests, "responses": stream.responses}
    flaws = {
        "A stream's name has 1 to 64 letters, digits, and _.- after the first one.": not NAME.fullmatch(stream.name),
        f"A stream's url begins with one of {_SCHEMES}.": stream.scheme not in TRANSPORTS,
        "A stream's url names a host, or host:port; in a password / ? # @ are %2F %3F %23 %40.": not stream.host,
        **{
            f"{what} is the name of a topic: 1 to {LONGEST_TOPIC} bytes without blanks.": not _is_topic(topic)
            for what, topic in topics.items()
        },
        "Answers go to another topic than the one that requests come from.": stream.requests == stream.responses,
        f"max_handlers is a number from 1 to {MOST_HANDLERS}.": not 0 < stream.max_handlers <= MOST_HANDLERS,
        "backoff_max_seconds is more than 0, and an hour at most.": not 0 < stream.backoff_max_seconds <= 3600,
    }
    return next((flaw for flaw, is_so in flaws.items() if is_so), None)


_SCHEMES = ", ".join(f"{scheme}://" for scheme in TRANSPORTS)


def _is_topic(name: str) -> bool:
    return name.isprintable() and " " not in name and 0 < len(name.encode()) <= LONGEST_TOPIC
