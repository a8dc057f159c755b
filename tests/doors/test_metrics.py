"""The metrics of a live server, compared with what it was asked, and read as an operator reads them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from doors.test_every_door import DOORS
from fakes.webhook_receiver import SECRET, WebhookReceiver
from signoff.core.metrics import METRICS
from signoff.core.retry import Backoff
from signoff.core.transitions import TRANSITIONS
from signoff.errors import Overloaded
from signoff.server.metrics_port import serve_metrics
from signoff.settings import Settings
from signoff.work.services import Services
from support.live_server import Live, chat, live, until
from support.processes import free_port

pytestmark = pytest.mark.anyio
TOKEN = "a-token-for-scrapes"
CHATS = "/v1/chat/completions"


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = list(text_string_to_metric_families(text))
        self.names = {family.name for family in families}
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        return sum(each.value for each in self._samples if each.name == name and labels.items() <= each.labels.items())

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {each.labels[label] for each in self._samples if each.name == name}

    def mean(self, name: str, **labels: str) -> float:
        """Return the mean of a histogram."""
        return self.value(f"{name}_sum", **labels) / self.value(f"{name}_count", **labels)


async def scrape(server: Live) -> Scrape:
    """Return the present metrics; the gauges of the database are read anew."""
    server.services.runtime.scrape._read_at = None
    status, text = await server.ask("GET", "/metrics", TOKEN)
    assert status == 200
    return Scrape(text)


async def test_requests_and_tokens_of_every_door_are_counted_as_in_the_report_of_usage(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        await server.model("same", review="never", cache="never")
        token, admin = await server.token(), await server.token("admin")
        await server.ask("PUT", "/api/prices/same", admin, json={"prompt": 1000, "completion": 2000})
        for door in DOORS.values():
            status, _ = await door(server, token, json.dumps(chat("What is 2 + 2?", "same")).encode())
            assert status in {200, 202}

        async def all_ended() -> Scrape | None:
            metrics = await scrape(server)
            ended = metrics.value("signoff_attempts_total", model="same", outcome="success")
            return metrics if ended == len(DOORS) else None

        async def all_logged() -> dict[str, Any] | None:
            _, usage = await server.ask("GET", "/api/usage?model=same", admin)
            return usage if usage["total"]["jobs"] == len(DOORS) else None

        metrics, usage = await until(all_ended), await until(all_logged)
        assert usage["total"]["prompt_tokens"] > 0
        for kind in ("prompt", "completion"):
            assert metrics.value("signoff_tokens_total", kind=kind) == usage["total"][f"{kind}_tokens"]
        assert metrics.value("signoff_cost_dollars_total") == pytest.approx(float(usage["total"]["cost"]))
        assert metrics.value("signoff_requests_total", model="same") == len(DOORS)
        doors = {"openai", "jobs", "native", "chat_completion", "predict", "cached"}
        assert metrics.labels("signoff_requests_total", "door") == doors
        assert metrics.value("signoff_model_duration_seconds_count", model="same") == len(DOORS)
        assert metrics.value("signoff_queue_wait_seconds_count") == 3
        assert metrics.value("signoff_attempts_in_flight") == 0
        for phase in ("admit", "reserve", "settle"):
            assert metrics.value("signoff_overhead_seconds_sum", phase=phase) > 0
        assert metrics.value("signoff_http_responses_total", status="202") == 1


async def test_no_label_is_chosen_by_a_caller(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        await server.model("wild-*")
        token = await server.token()
        for name in ("wild-1", "wild-2", "echo/tokens=3", "nobody"):
            await server.ask("POST", CHATS, token, json=chat("a secret", name), headers={"x-request-id": "a-request"})
        await server.ask("GET", "/no-such-path")
        metrics = await scrape(server)
        assert metrics.labels("signoff_requests_total", "model") == {"wild-*", "echo"}
        assert metrics.labels("signoff_attempts_total", "model") == {"wild-*", "echo"}
        for private in ("user@example.com", "secret", "a-request", "no-such-path", "wild-1"):
            assert private not in metrics.text


async def test_counters_that_alert_rules_read_begin_at_zero(tmp_path: Path) -> None:
    # Prometheus sees no increase in the first value of a series.
    async with live(tmp_path, metrics_token=TOKEN) as server:
        metrics = await scrape(server)
        assert metrics.labels("signoff_transitions_total", "verb") == set(TRANSITIONS)
        assert metrics.value("signoff_transitions_total", verb="lapse") == 0
        assert metrics.labels("signoff_delivery_attempts_total", "outcome") == {"done", "due", "failed"}
        assert metrics.labels("signoff_limits_refused_total", "kind") >= {"requests", "cost_per_month"}


async def test_every_defined_metric_is_there_from_the_start_in_both_formats(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        names = {metric.name.removesuffix("_total") for metric in METRICS}
        assert names <= (await scrape(server)).names
        headers = {"authorization": f"Bearer {TOKEN}", "accept": "application/openmetrics-text;version=1.0.0"}
        async with server.http.get(server.url + "/metrics", headers=headers) as response:
            assert response.content_type == "application/openmetrics-text"
            assert (await response.text()).endswith("# EOF\n")


async def test_only_the_token_for_metrics_and_admins_may_read_them(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        tokens = [None, "nonsense", TOKEN + "x", await server.token(), await server.token("reviewer")]
        statuses = [(await server.ask("GET", "/metrics", token))[0] for token in tokens]
        assert statuses == [401, 401, 401, 403, 403]
        for token in (TOKEN, await server.token("admin")):
            assert (await server.ask("GET", "/metrics", token))[0] == 200
        for method, path in (("GET", "/api/jobs"), ("GET", "/v1/models"), ("POST", CHATS), ("GET", "/api/usage")):
            assert (await server.ask(method, path, TOKEN, json=chat("hi")))[0] == 401


async def test_without_the_setting_only_admins_may_read_the_metrics(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        assert [(await server.ask("GET", "/metrics", token))[0] for token in (None, "", "None")] == [401, 401, 401]
        assert (await server.ask("GET", "/metrics", await server.token("admin")))[0] == 200


async def test_an_operator_finds_a_slow_model(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        await server.model("quick", cache="never")
        token = await server.token()
        for name in ("quick", "echo/delay=1"):
            assert (await server.ask("POST", CHATS, token, json=chat("hi", name)))[0] == 200
        metrics = await scrape(server)
        means = {name: metrics.mean("signoff_model_duration_seconds", model=name) for name in ("quick", "echo")}
        assert means["echo"] > max(0.99, means["quick"])
        # and that the time is not the server's own
        assert metrics.mean("signoff_overhead_seconds", phase="settle") < means["echo"]


async def test_an_operator_finds_a_stuck_queue(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN, concurrency=1) as server:
        token = await server.token()
        await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/hang"), "target": "echo/hang"})

        async def is_running() -> Scrape | None:
            metrics = await scrape(server)
            return metrics if metrics.value("signoff_attempts_in_flight", model="echo") else None

        metrics = await until(is_running)
        assert metrics.value("signoff_leases") == 1
        assert metrics.value("signoff_queue_jobs") == 0
        for _ in range(3):
            await server.ask("POST", "/api/jobs", token, json={"body": chat("hi")})
        before = await scrape(server)
        assert {owner: before.value("signoff_queue_jobs", owner=owner) for owner in ("user", "admin", "none")} == {
            "user": 3,
            "admin": 0,
            "none": 0,
        }
        after = await scrape(server)
        age = {"name": "signoff_queue_oldest_seconds", "owner": "user"}
        assert after.value(**age) > before.value(**age) > 0


async def test_an_operator_finds_a_spent_budget_and_what_waits_for_people(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN, hold_seconds=0.01) as server:
        admin, user = await server.token("admin"), await server.token()
        # each answer is audited, and an audit without a verdict counts as wrong: so the budget is spent by a few
        budget = {"answers": 1000, "share": 0.009, "confidence": 0.95, "audit_rate": 0.5}
        policy = {"target": "echo", "rules": [], "budget": budget}
        assert (await server.ask("PUT", "/api/policies/careful", admin, json=policy))[0] == 200

        async def is_spent() -> Scrape | None:
            await server.ask("POST", CHATS, user, json=chat("hi"))
            metrics = await scrape(server)
            return metrics if metrics.value("signoff_error_budgets", policy="careful", state="spent") else None

        metrics = await until(is_spent)
        assert metrics.value("signoff_error_budget_allowed", policy="careful") == 9
        assert metrics.value("signoff_error_budget_undetected", policy="careful") >= 9
        held = metrics.value("signoff_held_answers", queue="")
        assert held == metrics.value("signoff_transitions_total", verb="hold") > 0
        assert metrics.value("signoff_attempts_total", outcome="held") == held
        assert metrics.value("signoff_held_oldest_seconds", queue="") > 0
        _, waiting = await server.ask("GET", "/api/reviews", admin)
        job_id = waiting["data"][0]["job_id"]
        verdict = {"verdict": "reject", "reason": "No.", "round": waiting["data"][0]["round"]}
        assert (await server.ask("POST", f"/api/reviews/{job_id}/decide", admin, json=verdict))[0] == 200
        metrics = await scrape(server)
        assert metrics.value("signoff_verdict_seconds_count", verdict="reject") == 1
        assert metrics.value("signoff_verdict_seconds_sum", verdict="reject") > 0
        assert metrics.value("signoff_held_answers") == held - 1


async def test_hits_refusals_and_cooldowns_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signoff.core.balance.COOLDOWN", Backoff(first_seconds=60, ceiling_seconds=60))
    async with live(tmp_path, metrics_token=TOKEN) as server:
        admin, user = await server.token("admin"), await server.token()
        for _ in range(3):
            assert (await server.ask("POST", CHATS, user, json=chat("hi", temperature=0)))[0] == 200
        dead = [{"url": f"http://127.0.0.1:{free_port()}/v1"} for _ in range(2)]
        fields = {"name": "dead", "kind": "openai", "attempts": 1, "endpoints": dead}
        assert (await server.ask("POST", "/api/models", admin, json=fields))[0] < 300
        assert (await server.ask("POST", CHATS, user, json=chat("hi", "dead")))[0] >= 500
        await server.ask("PUT", "/api/limits/each", admin, json={"requests_per_minute": 1})
        statuses = [(await server.ask("POST", CHATS, user, json=chat(f"{number}")))[0] for number in range(3)]
        metrics = await scrape(server)
        assert statuses.count(429) == metrics.value("signoff_limits_refused_total", kind="requests") > 0
        assert metrics.value("signoff_cache_lookups_total", result="hit") == 2
        assert metrics.value("signoff_endpoint_cooldowns_total", model="dead") == 2
        assert metrics.value("signoff_endpoints", model="dead", state="resting") == 2
        assert metrics.value("signoff_attempts_total", model="dead", outcome="failed") == 1


async def test_deliveries_that_nobody_takes_are_a_backlog(tmp_path: Path) -> None:
    async with WebhookReceiver() as receiver:
        settings = {"webhook_allow": ["127.0.0.1"], "webhook_secret": SECRET, "metrics_token": TOKEN}
        async with live(tmp_path, **settings) as server:
            token = await server.token()
            for url in (receiver.url, f"http://127.0.0.1:{free_port()}/"):
                await server.ask("POST", "/api/jobs", token, json={"body": chat("hi"), "deliver": {"url": url}})

            async def is_settled() -> Scrape | None:
                metrics = await scrape(server)
                attempts = metrics.value("signoff_delivery_attempts_total", kind="webhook")
                pending = metrics.value("signoff_deliveries_pending", kind="webhook")
                return metrics if (attempts, pending) == (2, 1) else None

            metrics = await until(is_settled)
            assert metrics.value("signoff_delivery_attempts_total", kind="webhook", outcome="done") == 1
            assert metrics.value("signoff_delivery_attempts_total", kind="webhook", outcome="due") == 1


async def test_a_hung_event_loop_is_seen(tmp_path: Path) -> None:
    import time

    async with live(tmp_path, metrics_token=TOKEN) as server:

        async def is_late() -> bool | None:
            time.sleep(0.9)  # noqa: ASYNC251 -- it hangs the loop
            await asyncio.sleep(0.01)
            metrics = await scrape(server)
            late = metrics.value("signoff_event_loop_lag_seconds_count") - metrics.value(
                "signoff_event_loop_lag_seconds_bucket", le="0.25"
            )
            return True if late else None

        assert await until(is_late)


async def test_metrics_are_served_while_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:

        async def is_away(**_: object) -> None:
            raise Overloaded("The database does not answer.")

        monkeypatch.setattr(server.services.store.jobs, "queue_depths", is_away)
        metrics = await scrape(server)
        assert metrics.value("signoff_store_up") == 0
        assert metrics.labels("signoff_queue_jobs", "owner") == set()
        assert metrics.value("signoff_info") == 1


async def test_scrapes_share_one_reading_of_the_database_and_write_nothing(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        reads = list[int]()
        read = server.services.store.jobs.queue_depths

        async def count_reads(*, at_most: int) -> object:
            reads.append(at_most)
            return await read(at_most=at_most)

        server.services.store.jobs.queue_depths = count_reads  # type: ignore[method-assign]
        await scrape(server)
        before = written(tmp_path)
        await asyncio.gather(*(server.ask("GET", "/metrics", TOKEN) for _ in range(20)))
        assert len(reads) < 20
        server.services.runtime.scrape._read_at = None
        await asyncio.gather(*(server.ask("GET", "/metrics", TOKEN) for _ in range(20)))
        assert written(tmp_path) == before


def written(tmp_path: Path) -> list[tuple[str, int]]:
    """Return what a write to the database changes: the sizes and the times of its files."""
    files = (tmp_path / "data").glob("signoff.db*")
    return sorted((file.name, file.stat().st_mtime_ns) for file in files if not file.name.endswith("-shm"))


async def test_each_process_of_a_host_has_a_port_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(data_dir=tmp_path / "data", metrics_port=port)

    async def fetch(number: int) -> Scrape:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{number}/metrics") as response:
            assert response.status == 200
            return Scrape(await response.text())

    async def other_path(number: int) -> int:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{number}/api/jobs") as response:
            return response.status

    async with live(tmp_path, metrics_port=port) as server:
        await server.ask("POST", CHATS, await server.token(), json=chat("hi"))
        other: Services = server.services
        async with serve_metrics(other, settings):
            assert (await fetch(port)).value("signoff_requests_total") == 1
            assert (await fetch(port + 1)).value("signoff_info") == 1
            assert await other_path(port) == 404
