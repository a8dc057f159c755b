"""Errors of aiohttp while a connection to a model is opened, mapped to errors of ours.

Callers see the messages, so these have no addresses of this network.
"""

import os

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from signoff.engines.url import ADDRESS_NOT_ALLOWED
from signoff.errors import ModelFailed, ModelGarbled, ModelUnreachable
from signoff.infra.ssrf import blocked_reason
from signoff.infra.tls import tls_fault

# Bounds of the head of an answer: the bytes of all headers, and their number.
MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 1024
HEAD_TOO_LARGE = f"The head of the model's answer has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers."
# The first bytes of a TLS alert, as aiohttp quotes a malformed status line.
_TLS_ALERT = r"\x15\x03"


def map_connection_error(error: Exception) -> ModelFailed:
    """Return the error for a connection that failed, or whose answer has no head that can be read."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ModelUnreachable(f"The proxy refused to connect to the model (status {error.status}).")
    if isinstance(error, aiohttp.ClientResponseError):
        return ModelGarbled(_head_fault(error))
    if blocked_reason(error) is not None:
        return ModelFailed(ADDRESS_NOT_ALLOWED)
    fault = tls_fault(error)
    what = "The model's proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else "The model"
    unreachable = ModelUnreachable(f"{what} cannot be reached: {fault or _reason(error)}.")
    unreachable.retryable = fault is None  # no retry mends a certificate
    return unreachable


def _head_fault(error: aiohttp.ClientResponseError) -> str:
    if isinstance(error.__cause__, LineTooLong) or "Too many headers" in error.message:
        return HEAD_TOO_LARGE
    if _TLS_ALERT in error.message:
        return "The model's answer is TLS and not HTTP; begin its `url` with https://."
    return "The model's answer is not valid HTTP."


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name has no address"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "it did not accept a connection in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer; if its port speaks TLS, its `url` must begin with https://"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else type(error).__name__
