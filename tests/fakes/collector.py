"""An OpenTelemetry collector: it takes traces by OTLP over HTTP, and keeps their spans."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fakes.http_server import FakeServer, RecordedRequest, Reply


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived."""

    name: str
    kind: int
    """The number of its kind: 2 server, 3 client, 4 producer, 5 consumer."""
    trace_id: str
    span_id: str
    parent_id: str
    """The id of its parent; empty for a root."""
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    """The attributes of each event, by its name."""
    is_failed: bool
    service: str
    """The name of the service that sent it."""
    seconds: float


class Collector(FakeServer):
    """A server that receives traces at `/v1/traces`."""

    def __init__(self) -> None:
        super().__init__(host="127.0.0.1", port=0)
        self.bodies = list[bytes]()
        """Bodies of the requests, decompressed."""

    async def reply(self, request: RecordedRequest) -> Reply:
        assert request.path == "/v1/traces"
        is_packed = request.headers.get("content-encoding") == "gzip"
        self.bodies.append(gzip.decompress(request.body) if is_packed else request.body)
        return Reply(content_type="application/x-protobuf")

    def spans(self) -> list[CollectedSpan]:
        """Return all spans, in the order of their beginnings."""
        spans = [
            (span.start_time_unix_nano, _collected(span, dict(map(_pair, of_resource.resource.attributes))))
            for body in self.bodies
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in of_resource.scope_spans
            for span in scope.spans
        ]
        return [span for _, span in sorted(spans, key=lambda pair: pair[0])]


def _collected(span: Any, resource: dict[str, Any]) -> CollectedSpan:
    return CollectedSpan(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=dict(map(_pair, span.attributes)),
        events={event.name: dict(map(_pair, event.attributes)) for event in span.events},
        is_failed=span.status.code == 2,
        service=resource["service.name"],
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
    )


def _pair(attribute: Any) -> tuple[str, Any]:
    return attribute.key, getattr(attribute.value, attribute.value.WhichOneof("value"))
