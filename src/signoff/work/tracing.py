"""Traces of the path: request, queue, worker, model, review, delivery. Without a tracer, nothing is done.

Names and attributes are those of OpenTelemetry's semantic conventions for HTTP, messaging and generative AI. No span
has a prompt, an answer, a user, or the text of an error, which may quote any of them.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import msgspec

from signoff.core.api_paths import COMPLETIONS, EMBEDDINGS, IN_WORDS
from signoff.core.delivery import Delivery
from signoff.core.dialects.answer import usage_of_body, usage_of_events
from signoff.core.job import Job
from signoff.core.model import Model, upstream_name
from signoff.core.stream import Stream
from signoff.engine import ModelRequest
from signoff.infra.tracing import Attributes, Span, Tracer
from signoff.runtime.attempt import Attempt
from signoff.store import TransitionRequest
from signoff.work.services import Services

TRACE_HEADERS = ("traceparent", "tracestate")
_NO_SPAN = nullcontext()
_OPERATIONS = {COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings"}


def tracer_of(services: Services) -> Tracer | None:
    """Return the tracer of this process; None if none is configured."""
    return services.runtime.tracer


def carry_trace(services: Services, job: Job) -> Job:
    """Return `job` with the trace of the current span in its headers, so that it is with the job wherever it goes."""
    tracer = services.runtime.tracer
    if tracer is None or not (headers := tracer.headers()):
        return job
    return msgspec.structs.replace(job, headers=_without_trace(job.headers or {}) | headers)


def traced_message(services: Services, stream: Stream) -> AbstractContextManager[Span | None]:
    """Return the span in which a message of a topic becomes a job."""
    tracer = services.runtime.tracer
    attributes = {"messaging.operation.type": "receive", "messaging.destination.name": stream.requests}
    return _NO_SPAN if tracer is None else tracer.span("receive message", "consumer", attributes, headers={})


def traced_work(services: Services, job: Job) -> AbstractContextManager[Span | None]:
    """Return the span of a worker's attempt at `job`, after one for the time that the job has waited in the queue."""
    tracer = services.runtime.tracer
    if tracer is None:
        return _NO_SPAN
    attributes = _of_job(job) | {"messaging.operation.type": "process", "signoff.attempt": job.attempt}
    if job.parent_id is not None:
        return tracer.span("step", "internal", attributes, headers=job.headers)
    headers, due_at = job.headers or {}, max(job.created_at, job.due_at)
    if job.lane == "later" and job.attempt == 1 and job.updated_at > due_at:
        tracer.record("queue", _of_job(job), headers=headers, began_us=due_at, ended_us=job.updated_at)
    return tracer.span("process job", "consumer", attributes, headers=headers)


@contextlib.contextmanager
def traced_call(
    tracer: Tracer, attempt: Attempt, model: Model, request: ModelRequest
) -> Generator[tuple[Span, ModelRequest]]:
    """Yield the span of a request to a model, and the request with its trace, if the model gets such headers."""
    operation, name = _operation(request.path), upstream_name(model, request.target)
    attributes = _of_job(attempt.job) | _of_model(model)
    attributes |= {"gen_ai.operation.name": operation, "gen_ai.request.model": name}
    with tracer.span(f"{operation} {name}", "client", attributes) as span:
        if any(header in request.headers for header in TRACE_HEADERS):
            request = msgspec.structs.replace(request, headers=_without_trace(request.headers) | tracer.headers())
        yield span, request


def usage_attributes(attempt: Attempt, body: bytes | None) -> Attributes:
    """Return the tokens of an answer that came as `body`, or as the events of `attempt`."""
    request_body = attempt.job.body
    usage = usage_of_events(attempt.events, request_body) if body is None else usage_of_body(body, request_body)
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }


def traced_delivery(services: Services, delivery: Delivery, job: Job) -> AbstractContextManager[Span | None]:
    """Return the span of an attempt at a delivery of the end of `job`."""
    tracer = services.runtime.tracer
    if tracer is None:
        return _NO_SPAN
    attributes = _of_job(job) | {"signoff.delivery.id": delivery.id, "signoff.delivery.attempt": delivery.attempt}
    if delivery.kind == "webhook":
        attributes |= {"server.address": delivery.host}
    kind = "client" if delivery.kind == "webhook" else "producer"
    return tracer.span(f"send {delivery.kind}", kind, attributes, headers=job.headers or {})


def trace_headers(services: Services) -> dict[str, str]:
    """Return the headers that carry the trace of the current span to a receiver; none without a tracer."""
    tracer = services.runtime.tracer
    return {} if tracer is None else tracer.headers()


def trace_verdicts(tracer: Tracer, job: Job, requests: Sequence[TransitionRequest]) -> None:
    """Add a span with the event `gen_ai.evaluation.result` to the trace of `job` for each verdict on its answer."""
    for request in requests:
        if request.verb != "decide" or request.decision is None:
            continue
        verdict = request.decision.verdict
        with tracer.span(
            "review", "internal", _of_job(job) | {"signoff.round": job.round}, headers=job.headers or {}
        ) as span:
            span.add_event(
                "gen_ai.evaluation.result",
                {
                    "gen_ai.evaluation.name": "review",
                    "gen_ai.evaluation.score.label": verdict,
                    "gen_ai.evaluation.score.value": 1.0 if verdict == "approve" else 0.0,
                },
            )


def _of_job(job: Job) -> dict[str, Any]:
    return {"signoff.job.id": job.id, "signoff.door": job.door, "signoff.model": job.model}


def _of_model(model: Model) -> dict[str, Any]:
    attributes: dict[str, Any] = {"gen_ai.provider.name": model.kind}
    if model.url is not None:
        url = urlsplit(model.url)
        attributes |= {"server.address": url.hostname or ""} | ({} if url.port is None else {"server.port": url.port})
    return attributes


def _operation(path: str) -> str:
    """Return the operation of a route: one of the conventions' names, or `request`."""
    return _OPERATIONS.get(path) or ("chat" if path in IN_WORDS else "request")


def _without_trace(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in TRACE_HEADERS}
