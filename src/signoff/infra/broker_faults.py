"""Faults of connections to message brokers, described for operators without the secrets in the URL of a broker."""

import asyncio
import contextlib
import re
from collections.abc import Generator
from typing import cast
from urllib.parse import unquote, urlsplit

from signoff.core.stream import public_address
from signoff.errors import SignoffError, Undelivered

MAX_CHARACTERS = 300
HIDDEN = "…"
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
USER_INFO = re.compile(r"(?<=://)[^\s/]*@")
# Python's default text of an object has its address, which differs from one attempt to the next.
MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@contextlib.contextmanager
def own_cancellations(server: str = "server") -> Generator[None]:
    """Convert a cancellation in the block that is not one of the current task to a ConnectionError."""
    try:
        yield
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise ConnectionError(f"{server}: the connection was lost") from error


@contextlib.contextmanager
def described_faults(url: str) -> Generator[None]:
    """Convert errors of a client library in the block to ConnectionErrors, whose texts have no secrets.

    That is so for a cancellation by the library itself, too, such as aiormq's of what waits on a lost connection. The
    text of an Undelivered error, which has that of the broker, loses its secrets.
    """
    try:
        with own_cancellations(_server(url)):
            yield
    except Undelivered as error:
        if (text := _public_text(error, url)) == error.message:
            raise
        raise Undelivered(text) from error
    except Exception as error:
        if isinstance(error, SignoffError) or type(error) is ConnectionError:
            raise
        raise ConnectionError(describe_fault(error, url)) from error


def describe_fault(error: BaseException, url: str) -> str:
    """Return a clause with the server, the cause and, if known, the remedy of `error`, or of the first one of a group.

    It has no secret of `url`, and it is the same each time that the cause is the same.
    """
    error, server = first_error(error), _server(url)
    if url.startswith("amqp") and (clause := _amqp_clause(error, url)) is not None:
        return f"{server} {clause}"
    text = _public_text(error, url)
    if isinstance(error, TimeoutError) and not text:
        return f"{server} did not answer in time: check the address, and that this host can reach it"
    kind = type(error).__name__
    return f"{server}: {kind}: {text.removeprefix(f'{kind}: ')}" if text else f"{server}: {kind}"


def first_error(error: BaseException) -> BaseException:
    """Return `error`, or the first error of an exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def _server(url: str) -> str:
    """Return the hosts of `url`, as far as they may be shown."""
    scheme, hosts = public_address(url)
    port = DEFAULT_PORTS.get(scheme)
    return f"{hosts}:{port}" if hosts and port and urlsplit(url).port is None else hosts or "The server"


def _amqp_clause(error: BaseException, url: str) -> str | None:
    """Return the cause of an error of RabbitMQ, and its remedy; None for an error that has no clause of its own."""
    from aio_pika.exceptions import (
        AMQPConnectionError,
        AuthenticationError,
        InvalidFrameError,
        ProbableAuthenticationError,
    )

    parts = urlsplit(url)
    user = unquote(parts.username or "guest")
    match error:
        case AuthenticationError() | ProbableAuthenticationError():
            return f"refuses the login {user!r}: check the user and the password"
        case InvalidFrameError() if "Connection.OpenOk" in str(error):
            virtual_host = unquote(parts.path[1:]) or "/"
            return f"refuses the virtual host {virtual_host!r}: check that it exists, and that {user!r} may use it"
        case AMQPConnectionError():
            return f"cannot be reached: {_public_text(error, url)}"
        case _:
            return None


def _public_text(error: BaseException, url: str) -> str:
    """Return the text of `error` on one line, without the secrets of `url` and without addresses of objects."""
    text = USER_INFO.sub(f"{HIDDEN}@", str(error).replace(url, HIDDEN))
    for secret in sorted(_secrets_of(url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return " ".join(MEMORY_ADDRESS.sub("", text).split())[:MAX_CHARACTERS]


def _secrets_of(url: str) -> set[str]:
    """Return the password of `url`, else its user, which may be a token, and its query; as written and decoded."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return {url}
    login = parts.netloc.rpartition("@")[0]
    user, _, password = login.partition(":")
    secrets = {login, password or user, parts.query} - {""}
    return secrets | {unquote(secret) for secret in secrets}
