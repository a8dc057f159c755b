"""Traces: what the path needs of a tracer, without the library that sends them, which is an extra (`otel`).

A trace is carried by the header `traceparent` (W3C Trace Context), in requests, in a job's `headers`, and to upstreams.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

Attributes = Mapping[str, str | int | float | bool]
SpanKind = Literal["server", "client", "producer", "consumer", "internal"]


class Span(Protocol):
    """A piece of work with a beginning and an end."""

    def rename(self, name: str) -> None:
        """Replace the name."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def add_event(self, name: str, attributes: Attributes) -> None:
        """Add something that happened at this moment."""
        ...

    def fail(self, kind: str) -> None:
        """Mark the span as failed; `kind` is a code of an error, and never its text."""
        ...


class Tracer(Protocol):
    """Maker of spans, which it sends in the background."""

    def span(
        self, name: str, kind: SpanKind, attributes: Attributes, *, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Span]:
        """Return a span for the duration of a block, in the trace of `headers`; None: in that of the current span.

        An exception marks it as failed, with the code of the error, and never with its text.
        """
        ...

    def record(
        self, name: str, attributes: Attributes, *, headers: Mapping[str, str], began_us: int, ended_us: int
    ) -> None:
        """Add a span that has ended, in the trace of `headers`. Times are microseconds since 1970, UTC."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers that carry the trace of the current span; none outside of one."""
        ...

    def close(self) -> None:
        """Send what is pending, within some seconds. It blocks."""
        ...
