"""Requests to models, as HTTP/1.1 writes them (RFC 9112)."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from yarl import URL

from signoff.engines.http_pool import Origin, basic_credentials
from signoff.engines.url import parse_model_url

DEFAULT_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "signoff"}
# Headers of framing, which this module sets; those of a request are dropped.
FRAMING = {"connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
WITHOUT_BODY = {"DELETE", "GET", "OPTIONS"}


class UpstreamRequest(msgspec.Struct, frozen=True):
    """Request to a model."""

    method: str
    """HTTP method, in capitals."""
    url: str
    """URL with http or https."""
    body: bytes
    """Body as it is sent; empty for none."""
    headers: dict[str, str]
    """Headers besides those of `DEFAULT_HEADERS` and `FRAMING`."""
    response_headers: dict[str, str] = {}
    """Receiver of the headers about rate limits, with names in lower case."""


class PreparedRequest(NamedTuple):
    """Parts that all requests to one URL have in common."""

    origin: Origin
    """The server."""
    line: str
    """The request line."""
    headers: dict[str, str]
    """Default headers; a header of the request replaces the one of its name."""


def prepare(find_proxy: Callable[[URL], URL | None] | None, method: str, url: str) -> PreparedRequest:
    """Return what requests to `url` have in common. Raises ValueError, ModelFailed."""
    parsed = parse_model_url(url)
    proxy = None if find_proxy is None else find_proxy(parsed)
    origin = Origin(parsed.scheme == "https", parsed.raw_host or "", parsed.port or 0, proxy)
    headers = DEFAULT_HEADERS | {"host": parsed.host_port_subcomponent or ""}
    if parsed.user is not None:
        headers["authorization"] = basic_credentials(parsed)
    target = parsed.raw_path_qs
    if proxy is not None and not origin.is_tls:  # the proxy reads the request; otherwise it opens a tunnel
        target = f"{parsed.scheme}://{parsed.host_port_subcomponent}{target}"
        if proxy.user is not None:
            headers["proxy-authorization"] = basic_credentials(proxy)
    return PreparedRequest(origin, f"{method} {target} HTTP/1.1\r\n", headers)


def request_head(prepared: PreparedRequest, request: UpstreamRequest) -> bytes:
    """Return the head of a request. Raises ValueError for a header with a line break or a NUL character."""
    own = {lower: value for name, value in request.headers.items() if (lower := name.lower()) not in FRAMING}
    headers = prepared.headers | own
    if request.body or request.method not in WITHOUT_BODY:
        headers["content-length"] = str(len(request.body))
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header of the request has a line break or a NUL character")
    return f"{prepared.line}{lines}\r\n".encode()
