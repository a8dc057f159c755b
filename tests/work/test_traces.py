"""Traces: one for each request, from the door over the queue and the model to the webhook, in a real collector."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.collector import CollectedSpan, Collector
from fakes.upstream import fake_upstream
from fakes.webhook_receiver import SECRET, WebhookReceiver
from signoff.server.adapters import make_tracer
from signoff.setting_sources import BadSettings
from signoff.settings import Settings
from support.live_server import Live, chat, live, until
from support.pipelines import save

pytestmark = pytest.mark.anyio
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
CHATS = "/v1/chat/completions"
SERVER, CLIENT, CONSUMER = 2, 3, 5


async def spans_of(server: Live, collector: Collector, trace_id: str, *names: str) -> dict[str, CollectedSpan]:
    """Return the spans of a trace by name, once those of `names` have arrived."""
    tracer: Any = server.services.runtime.tracer

    async def look() -> dict[str, CollectedSpan] | None:
        await asyncio.to_thread(tracer._provider.force_flush)
        spans = {span.name: span for span in collector.spans() if span.trace_id == trace_id}
        return spans if spans.keys() >= {*names} else None

    return await until(look)


async def test_a_call_is_one_trace_from_the_caller_to_the_upstream(tmp_path: Path) -> None:
    async with Collector() as collector, fake_upstream() as upstream:
        async with live(tmp_path, otlp_endpoint=collector.url) as server:
            await server.model("far", kind="openai", url=upstream.at("answer"), upstream_model="gpt-x")
            headers = {"traceparent": TRACEPARENT}
            status, _ = await server.ask(
                "POST", CHATS, await server.token(), json=chat("a secret question", "far"), headers=headers
            )
            assert status == 200
            spans = await spans_of(server, collector, TRACE, f"POST {CHATS}", "chat gpt-x")
        request, call = spans[f"POST {CHATS}"], spans["chat gpt-x"]
        assert (request.kind, request.parent_id, request.service) == (SERVER, PARENT, "signoff")
        assert request.attributes["http.response.status_code"] == 200
        assert (call.kind, call.parent_id) == (CLIENT, request.span_id)
        assert call.attributes["gen_ai.operation.name"] == "chat"
        assert call.attributes["gen_ai.provider.name"] == "openai"
        assert call.attributes["gen_ai.request.model"] == "gpt-x"
        assert call.attributes["gen_ai.usage.input_tokens"] > 0
        assert call.attributes["server.port"] > 0
        assert request.attributes["signoff.job.id"] == call.attributes["signoff.job.id"]
        [received] = await upstream.received()
        assert received.headers["traceparent"] == f"00-{TRACE}-{call.span_id}-01"
        # neither the question nor the answer is in what the collector got, nor who asked
        sent = b"".join(collector.bodies)
        for private in (b"secret", b"user@example.com", "café".encode()):
            assert private not in sent


async def test_a_job_is_one_trace_over_the_queue_to_its_webhook(tmp_path: Path) -> None:
    async with Collector() as collector, WebhookReceiver() as receiver:
        settings = {"webhook_allow": ["127.0.0.1"], "webhook_secret": SECRET, "otlp_endpoint": collector.url}
        async with live(tmp_path, **settings) as server:
            body = {"body": chat("hi"), "deliver": {"url": receiver.url}}
            token, headers = await server.token(), {"traceparent": TRACEPARENT}
            status, job = await server.ask("POST", "/api/jobs", token, json=body, headers=headers)
            assert status == 202
            [webhook] = await receiver.received()
            names = ("POST /api/jobs", "queue", "process job", "chat echo", "send webhook")
            spans = await spans_of(server, collector, TRACE, *names)
        request, queue, work, call, delivery = (spans[name] for name in names)
        assert request.parent_id == PARENT
        assert [span.parent_id for span in (queue, work, delivery)] == [request.span_id] * 3
        assert (work.kind, call.parent_id) == (CONSUMER, work.span_id)
        assert work.attributes["signoff.attempt"] == 1
        assert delivery.attributes["http.response.status_code"] == 200
        assert webhook.headers["traceparent"] == f"00-{TRACE}-{delivery.span_id}-01"
        assert {span.attributes["signoff.job.id"] for span in spans.values()} == {job["job_id"]}


async def test_a_verdict_is_an_evaluation_result_in_the_trace_of_its_job(tmp_path: Path) -> None:
    async with Collector() as collector, live(tmp_path, otlp_endpoint=collector.url) as server:
        await server.model("careful", review="always")
        admin = await server.token("admin")
        body = {"body": chat("hi", "careful")}
        _, job = await server.ask("POST", "/api/jobs", admin, json=body, headers={"traceparent": TRACEPARENT})
        await server.job_when(admin, job["job_id"], lambda each: each.get("status") == "human")
        verdict = {"verdict": "reject", "reason": "a private reason", "round": 1}
        assert (await server.ask("POST", f"/api/reviews/{job['job_id']}/decide", admin, json=verdict))[0] == 200
        review = (await spans_of(server, collector, TRACE, "review"))["review"]
        assert review.events["gen_ai.evaluation.result"] == {
            "gen_ai.evaluation.name": "review",
            "gen_ai.evaluation.score.label": "reject",
            "gen_ai.evaluation.score.value": 0.0,
        }
        assert b"private" not in b"".join(collector.bodies)


async def test_the_steps_of_a_run_are_in_its_trace(tmp_path: Path) -> None:
    async with Collector() as collector, live(tmp_path, otlp_endpoint=collector.url) as server:
        token, headers = await server.token(), {"traceparent": TRACEPARENT}
        await save(server, token, "prompt", "greet", "Greet {name}.", model="echo")
        await save(server, token, "pipeline", "politely", "greet(name)")
        body = {"body": {"name": "Ann"}, "target": "politely", "path": "/predict"}
        assert (await server.ask("POST", "/api/jobs", token, json=body, headers=headers))[0] == 202
        spans = await spans_of(server, collector, TRACE, "process job", "step", "chat echo")
        assert spans["step"].parent_id == spans["process job"].span_id
        assert spans["chat echo"].parent_id == spans["step"].span_id


async def test_a_failed_call_has_the_code_of_its_error_and_not_its_text(tmp_path: Path) -> None:
    async with Collector() as collector, fake_upstream() as upstream:
        async with live(tmp_path, otlp_endpoint=collector.url) as server:
            await server.model("far", kind="openai", url=upstream.at("broken-by-number"))
            headers = {"traceparent": TRACEPARENT}
            await server.ask("POST", CHATS, await server.token(), json=chat("hi", "far"), headers=headers)
            spans = await spans_of(server, collector, TRACE, f"POST {CHATS}", "chat far")
        call = spans["chat far"]
        assert call.is_failed
        assert call.attributes["error.type"]
        assert call.events == {}
        assert not spans[f"POST {CHATS}"].is_failed


async def test_without_a_collector_nothing_of_opentelemetry_is_used(tmp_path: Path) -> None:
    async with fake_upstream() as upstream, live(tmp_path) as server:
        await server.model("far", kind="openai", url=upstream.at("answer"))
        headers = {"traceparent": TRACEPARENT}
        await server.ask("POST", CHATS, await server.token(), json=chat("hi", "far"), headers=headers)
        [received] = await upstream.received()
        assert received.headers["traceparent"] == TRACEPARENT  # it passes on as it came
        assert server.services.runtime.tracer is None


def test_a_missing_extra_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "signoff.infra.otel", raising=False)
    settings = Settings(data_dir=tmp_path, otlp_endpoint="http://localhost:4318")
    with pytest.raises(BadSettings, match=r"extra `otel`: pip install 'WHEEL\[otel\]'"):
        make_tracer(settings)
