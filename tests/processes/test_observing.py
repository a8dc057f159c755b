"""Traces and metrics of real processes: a server and a worker, on PostgreSQL and RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.collector import CollectedSpan, Collector
from support.live_server import until as eventually
from support.processes import ask, clean_environment, free_port, served, signoff, until, worked

pytestmark = pytest.mark.anyio


async def test_a_job_is_one_trace_over_two_processes_and_each_has_its_metrics_and_its_log(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str, prefix: str
) -> None:
    port, metrics_port = free_port(), free_port()
    async with Collector() as collector:
        environment = clean_environment(
            tmp_path / "data",
            SIGNOFF_DATABASE_URL=postgres_url,
            SIGNOFF_AMQP_URL=rabbitmq_url,
            SIGNOFF_QUEUE_NAME=prefix,
            SIGNOFF_OTLP_ENDPOINT=collector.url,
            SIGNOFF_METRICS_PORT=str(metrics_port),
            SIGNOFF_LOG_FORMAT="json",
            SIGNOFF_LOG_LEVEL="debug",
            SIGNOFF_ACCESS_LOG="true",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )

        def run_job() -> tuple[str, list[dict[str, float]]]:
            signoff(environment, "migrate")
            token = signoff(environment, "token", "create", "a@example.com", "--role", "admin", "--quiet").strip()
            with served(environment, tmp_path, port, "--no-work"), worked(environment):
                job_id = ask(port, "/api/jobs", token, {"body": {"input": "a secret"}, "target": "echo"})["job_id"]
                until(lambda: ask(port, f"/api/jobs/{job_id}", token)["status"] == "success" or None)
                # the worker has come second, and has the next port
                return job_id, [samples(number) for number in (metrics_port, metrics_port + 1)]

        job_id, (server, worker) = await asyncio.to_thread(run_job)

        async def look() -> dict[str, CollectedSpan] | None:
            spans = {span.name: span for span in collector.spans() if span.attributes.get("signoff.job.id") == job_id}
            return spans if len(spans) >= 4 else None

        spans = await eventually(look)
    assert set(spans) == {"POST /api/jobs", "queue", "process job", "chat echo"}
    assert len({span.trace_id for span in spans.values()}) == 1
    assert spans["process job"].parent_id == spans["POST /api/jobs"].span_id
    assert spans["queue"].seconds > 0
    requests, attempts = (f'signoff_{name}{{"model": "echo"}}' for name in ("requests_total", "attempts_total"))
    assert (server.get(requests), server.get(attempts)) == (1, None)
    assert (worker.get(requests), worker.get(attempts)) == (None, 1)
    log = (tmp_path / "err.txt").read_text()
    [line] = [line for line in map(json.loads, log.splitlines()) if line.get("status") == 202]
    assert (line["path"], line["job_id"]) == ("/api/jobs", job_id)
    assert line["trace_id"] == spans["queue"].trace_id
    assert line["request_id"]
    assert "secret" not in log
    assert server['signoff_queue_jobs{"owner": "admin"}'] == worker['signoff_queue_jobs{"owner": "admin"}'] == 0


def samples(port: int) -> dict[str, float]:
    """Return the samples of the process at this port; of labels, those of the model and of the owner."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        sample.name + json.dumps({name: sample.labels[name] for name in ("model", "owner") if name in sample.labels}): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }
