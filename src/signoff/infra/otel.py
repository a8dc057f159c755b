"""Traces by OpenTelemetry, sent by OTLP over HTTP. The extra `otel` installs what this module imports.

Its other settings are the variables of the SDK, such as `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`,
`OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` (OpenTelemetry, "Environment Variable Specification").
"""

import contextlib
from collections.abc import Generator, Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from signoff import __version__
from signoff.infra.logging import TRACE_ID
from signoff.infra.tracing import Attributes, SpanKind

NAME = "signoff"
_KINDS: Mapping[SpanKind, trace.SpanKind] = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
    "internal": trace.SpanKind.INTERNAL,
}
_PROPAGATOR = TraceContextTextMapPropagator()


class OtelTracer:
    """Tracer that sends its spans to an OpenTelemetry collector; see `infra.tracing.Tracer`.

    Args:
        endpoint: Base URL of the collector, such as `http://localhost:4318`.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({SERVICE_NAME: NAME, SERVICE_VERSION: __version__})
        resource = resource.merge(OTELResourceDetector().detect())  # the variables win
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME, __version__)

    @contextlib.contextmanager
    def span(
        self, name: str, kind: SpanKind, attributes: Attributes, *, headers: Mapping[str, str] | None = None
    ) -> Generator["OtelSpan"]:
        """See `Tracer`."""
        context = None if headers is None else _PROPAGATOR.extract(headers)
        with self._tracer.start_as_current_span(
            name, context, _KINDS[kind], attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            own, outer_trace_id = OtelSpan(span), TRACE_ID.get()
            TRACE_ID.set(f"{span.get_span_context().trace_id:032x}")
            try:
                yield own
            except BaseException as error:
                own.fail(getattr(error, "code", None) or type(error).__name__)
                raise
            finally:
                TRACE_ID.set(outer_trace_id)

    def record(
        self, name: str, attributes: Attributes, *, headers: Mapping[str, str], began_us: int, ended_us: int
    ) -> None:
        """See `Tracer`."""
        context = _PROPAGATOR.extract(headers)
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=began_us * 1000)
        span.end(ended_us * 1000)

    def headers(self) -> dict[str, str]:
        """See `Tracer`."""
        headers = dict[str, str]()
        _PROPAGATOR.inject(headers)
        return headers

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.shutdown()


class OtelSpan:
    """Span of OpenTelemetry; see `infra.tracing.Span`. An exception's text is not recorded, as it may quote content."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """See `Span`."""
        self._span.set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes) -> None:
        """See `Span`."""
        self._span.add_event(name, attributes)

    def fail(self, kind: str) -> None:
        """See `Span`."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)
