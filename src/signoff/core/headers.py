"""Headers of a caller's request that pass on to a model.

A model, or the setting `pass_headers`, lists their names. Headers that could change the answer count as a part of the
request wherever requests are compared: in the response cache, for idempotency keys, and for calls that are joined.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec

# What routes of OpenAI and Anthropic need, and what traces a request.
DEFAULT_HEADERS = (
    "openai-beta",
    "openai-organization",
    "openai-project",
    "anthropic-version",
    "anthropic-beta",
    "traceparent",
    "tracestate",
    "x-request-id",
)
# These differ from one request to the next and change no answer.
TRACING_HEADERS = frozenset(
    {"traceparent", "tracestate", "baggage", "x-request-id", "x-client-request-id", "x-correlation-id"}
)
MAX_HEADERS = 32
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Names that never pass: credentials, what belongs to one connection (RFC 9110, section 7.6.1) or to the body, what
# proxies tell about the caller, and what this server reads itself.
_CLOSED = re.compile(
    r".*(auth|cookie|credential|password|secret|token|api-?key).*|x-(signoff|forwarded|stainless|csrf)-?.*|content-.*"
    r"|proxy-.*|connection|keep-alive|te|trailer|transfer-encoding|upgrade|host|expect|range|if-.*|forwarded|via"
    r"|x-real-ip|accept-encoding|idempotency-key|prefer|cache-control",
    re.IGNORECASE,
)
Headers = Mapping[str, str]


def header_names_fault(names: Sequence[str]) -> str | None:
    """Return an error message for a list of names of which one cannot pass on to a model; None for a valid list."""
    if len(names) > MAX_HEADERS or not all(map(_NAME.fullmatch, names)):
        return f"`pass_headers` must be at most {MAX_HEADERS} names of headers (letters, digits, - and _)."
    closed = next((name for name in names if _CLOSED.fullmatch(name)), None)
    if closed is not None:
        return (
            f"`pass_headers` must not have {closed!r}: credentials, cookies, and headers of the connection, the body "
            "or this server never pass on; remove it."
        )
    return None


def select_headers(raw: Iterable[tuple[bytes, bytes]], names: tuple[str, ...]) -> dict[str, str] | None:
    """Return the headers with one of `names`, by name in lower case; None if there are none.

    The values of a repeated header are joined (RFC 9110, section 5.3).
    """
    wanted = _encoded(names)
    selected: dict[str, str] = {}
    for raw_name, raw_value in raw:
        if raw_name in wanted:
            name, value = raw_name.decode(), raw_value.decode("latin-1")
            selected[name] = f"{selected[name]}, {value}" if name in selected else value
    return selected or None


def restrict_headers(headers: Headers, names: tuple[str, ...]) -> dict[str, str]:
    """Return those of the selected `headers` that another model takes too."""
    wanted = _encoded(names)
    return {name: value for name, value in headers.items() if name.encode() in wanted}


def comparable_headers(headers: Headers | None) -> bytes:
    """Encode the headers that could change the answer, to compare requests by; empty if there are none."""
    if headers is None:
        return b""
    relevant = {name: value for name, value in headers.items() if name not in TRACING_HEADERS}
    return msgspec.json.encode(relevant, order="sorted") if relevant else b""


@lru_cache(maxsize=1024)
def _encoded(names: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in names)
