"""Errors of connections to models, mapped to those that callers see, which show no address of this network."""

import os

from signoff.engines.http_connection import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Disconnected,
    HeadTooLarge,
    MalformedAnswer,
    TlsAnswer,
)
from signoff.engines.http_pool import ConnectTimeout, ProxyRefused, ProxyUnreachable, UnknownName
from signoff.engines.url import ADDRESS_NOT_ALLOWED
from signoff.errors import ModelFailed, ModelUnreachable
from signoff.infra.ssrf import blocked_reason
from signoff.infra.tls import tls_fault


def map_connection_error(error: Exception) -> ModelFailed:
    """Return the error for a connection that failed before the head of an answer."""
    if isinstance(error, ProxyRefused):
        return ModelUnreachable(f"The proxy refused to connect to the model (status {error.status}).")
    if blocked_reason(error) is not None:
        return ModelFailed(ADDRESS_NOT_ALLOWED)
    subject, cause = "The model", error
    if isinstance(error, ProxyUnreachable) and isinstance(error.__cause__, Exception):
        subject, cause = "The model's proxy", error.__cause__
    fault = tls_fault(cause)
    unreachable = ModelUnreachable(f"{subject} cannot be reached: {fault or _reason(cause)}.")
    unreachable.retryable = fault is None  # no retry mends a certificate
    return unreachable


def malformed_message(error: MalformedAnswer) -> str:
    """Return the message for an answer that is not HTTP."""
    if isinstance(error, HeadTooLarge):
        return f"The head of the model's answer has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers."
    if isinstance(error, TlsAnswer):
        return "The model's answer is TLS and not HTTP; begin its `url` with https://."
    return "The model's answer is not valid HTTP."


def _reason(error: Exception) -> str:
    if isinstance(error, UnknownName):
        return "its host name has no address"
    if isinstance(error, ConnectTimeout):
        return "it did not accept a connection in time"
    if isinstance(error, Disconnected):
        return "it closed the connection without an answer; if its port speaks TLS, its `url` must begin with https://"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else type(error).__name__
