"""Faults of TLS connections, in words that name the remedy."""

import functools
import ssl

# Values of `verify_code` (OpenSSL, x509_vfy.h).
_EXPIRED = 10
_OTHER_NAME = {62, 64}  # of a host name, and of an IP address
# Reasons with which OpenSSL reports that the other side sent something else than TLS.
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}


@functools.cache
def default_context() -> ssl.SSLContext:
    """Return the context of checked connections: it trusts the system's authorities, or `SSL_CERT_FILE`."""
    return ssl.create_default_context()


def tls_fault(error: BaseException) -> str | None:
    """Return the fault and the remedy of a TLS error, for messages to callers, so without host names.

    None for any other error.
    """
    cause = _tls_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _OTHER_NAME:
            return "certificate verify failed: it is for another host name; use the name that the certificate has"
        if cause.verify_code == _EXPIRED:
            return "certificate verify failed: it has expired; renew the certificate"
        message = cause.verify_message
        return f"certificate verify failed: {message}; add its authority to the file that SSL_CERT_FILE names"
    if cause is None:
        return None
    if cause.reason in _NOT_TLS:
        return "it does not speak TLS at this port; begin its URL with http://, or use its TLS port"
    return f"TLS failed: {(cause.reason or type(cause).__name__).replace('_', ' ').lower()}"


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the TLS error in `error` or among its causes. aiohttp wraps some in attributes."""
    cause: BaseException | None = error
    while cause is not None:
        # The attributes first, because one of the wrappers is a kind of SSLError itself.
        for each in (getattr(cause, "certificate_error", None), getattr(cause, "os_error", None), cause):
            if isinstance(each, ssl.SSLError):
                return each
        cause = cause.__cause__ or cause.__context__
    return None
