"""Headers of callers that pass on to models, at every door, at once and later; and the keys of upstreams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.behaviours import ANSWER
from fakes.http_server import RecordedRequest, Reply, json_reply, whole
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Caller
from signoff.core.api_paths import CHAT
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import Model
from signoff.work.admin.registry import ModelKeys, register_model
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import chat, live, until

pytestmark = pytest.mark.anyio
SENT = {
    "openai-beta": "assistants=v2",
    "anthropic-version": "2024-01-01",
    "traceparent": "00-1-2-01",
    "x-custom": "mine",
    "cookie": "a=b",
    "x-stainless-lang": "python",
}
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


async def answer(request: RecordedRequest) -> Reply:
    return json_reply(MESSAGE) if "/messages" in request.path else whole(ANSWER)


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def received(fake: FakeUpstream) -> dict[str, str]:
    """Return those of the last request's headers that a test sends."""
    return {name: value for name, value in fake.requests[-1].headers.items() if name in SENT}


def only(*names: str) -> dict[str, str]:
    return {name: SENT[name] for name in names}


async def test_the_usual_headers_pass_at_every_door_and_no_others(tmp_path: Path) -> None:
    async with fake_upstream(answer) as fake, live(tmp_path, enqueue_review="never") as server:
        token = await server.token()
        await server.model("up", kind="openai", url=fake.url)
        await server.model("plain", kind="http", url=fake.url)
        body = chat("hello", "up")
        requests: list[tuple[str, Any]] = [
            (CHAT, body),
            ("/v1/messages", body | {"max_tokens": 5}),
            ("/v1/vector_stores", {"name": "x", "model": "up"}),
            ("/api/openai/v1/chat/completions", body),
            ("/post/predict?id=plain", body),
            ("/enqueue", body),
            ("/api/jobs", {"target": "up", "body": body}),
            ("/generate", {"job_id": "one", "content": "hello", "meta": {"model": "up"}}),
        ]
        for count, (path, payload) in enumerate(requests, 1):
            assert (await server.ask("POST", path, token, json=payload, headers=SENT))[0] < 300, path

            async def has_arrived(count: int = count) -> bool | None:
                return len(fake.requests) == count or None

            await until(has_arrived)
            assert received(fake) == only("openai-beta", "anthropic-version", "traceparent"), path
            assert token not in str(fake.requests[-1].headers)


async def test_a_model_has_its_own_list_and_a_fallback_gets_what_both_take(tmp_path: Path) -> None:
    async with fake_upstream(answer) as fake, live(tmp_path, pass_headers=["traceparent"]) as server:
        token, admin = await server.token(), await server.token("admin")
        await server.model("up", kind="openai", url=fake.url)
        for names, expected in (
            (None, only("traceparent")),
            (["X-Custom", "openai-beta"], only("x-custom", "openai-beta")),
            ([], {}),
        ):
            changed = await server.ask("PATCH", "/api/models/up", admin, json={"pass_headers": names})
            assert (changed[0], changed[1]["pass_headers"]) == (200, names)
            await server.ask("POST", CHAT, token, json=chat("hello", "up"), headers=SENT)
            assert received(fake) == expected
        status, problem = await server.ask("PATCH", "/api/models/up", admin, json={"pass_headers": ["Cookie"]})
        assert (status, problem["code"]) == (400, "bad_request")
        await server.model("spare", kind="openai", url=fake.url, pass_headers=("x-custom",))
        url = "http://127.0.0.1:1"
        await server.model(
            "main", kind="openai", url=url, fallbacks=("spare",), pass_headers=("x-custom", "openai-beta")
        )
        await server.ask("POST", CHAT, token, json=chat("hello", "main"), headers=SENT)
        assert received(fake) == only("x-custom")


async def test_the_headers_of_a_held_call_are_sent_when_it_is_asked_again(tmp_path: Path) -> None:
    async with fake_upstream(answer) as fake, live(tmp_path, hold_seconds=0) as server:
        token = await server.token()
        await server.model("held", kind="openai", url=fake.url, review="always")
        status, _ = await server.ask("POST", CHAT, token, json=chat("hello", "held"), headers=SENT)
        assert status == 504
        (job,) = await server.services.store.jobs.list(JobFilter(status="human"))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="redo", round=job.round))

        async def is_held_again() -> Job | None:
            jobs = await server.services.store.jobs.list(JobFilter(status="human"))
            return next((each for each in jobs if each.round > job.round), None)

        await until(is_held_again)
        assert len(fake.requests) == 2
        assert received(fake) == only("openai-beta", "anthropic-version", "traceparent")
        assert (await server.ask("DELETE", f"/api/jobs/{job.id}", token))[0] < 300
        assert (await server.ask("POST", f"/api/jobs/{job.id}/retry", token))[0] == 202

        async def was_asked() -> bool | None:
            return len(fake.requests) == 3 or None

        await until(was_asked)
        assert received(fake) == only("openai-beta", "anthropic-version", "traceparent")


async def test_a_header_that_can_change_the_answer_is_a_part_of_the_request(tmp_path: Path) -> None:
    async with fake_upstream(answer) as fake, live(tmp_path) as server:
        token = await server.token()
        await server.model("up", kind="openai", url=fake.url, cache="always")
        caches = list[str]()
        for beta, trace in (("one", "1"), ("one", "2"), ("two", "2"), ("two", "3")):
            headers = {"authorization": f"Bearer {token}", "openai-beta": beta, "traceparent": trace}
            async with server.http.post(server.url + CHAT, json=chat("hello", "up"), headers=headers) as response:
                caches.append(response.headers["x-signoff-cache"])
        assert (caches, len(fake.requests)) == (["miss", "hit", "miss", "hit"], 2)
        statuses = list[int]()
        for beta in ("one", "one", "two"):
            headers = {"idempotency-key": "k", "openai-beta": beta, "x-request-id": str(len(statuses))}
            statuses.append((await server.ask("POST", CHAT, token, json=chat("hi", "up"), headers=headers))[0])
        assert statuses == [200, 200, 422]


async def test_each_upstream_gets_its_key_where_it_reads_it(tmp_path: Path) -> None:
    async with fake_upstream(answer) as fake, live(tmp_path) as server:
        token = await server.token()
        for tail, path, name in (
            ("/v1", CHAT, "authorization"),
            ("/openai/deployments/gpt?api-version=1", CHAT, "api-key"),
            ("/anthropic", "/v1/messages", "x-api-key"),
        ):
            model = Model(name=f"by-{name}", kind="openai", url=fake.url + tail)
            await register_model(server.services, model, ModelKeys("secret"))
            assert (await server.ask("POST", path, token, json=chat("hello", model.name, max_tokens=5)))[0] == 200
            headers = fake.requests[-1].headers
            assert headers[name] == ("Bearer secret" if name == "authorization" else "secret")
            assert len({"authorization", "api-key", "x-api-key"} & headers.keys()) == 1
            assert headers.get("anthropic-version") == ("2023-06-01" if path == "/v1/messages" else None)
