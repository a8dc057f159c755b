"""The door `/generate`: the documented bodies, ids chosen by the caller, and two bugs of the original queue."""

from __future__ import annotations

import asyncio
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fakes.http_server import LIMIT_SECONDS
from fakes.upstream import fake_upstream
from support.live_server import Live, live, until
from support.processes import ask, first_token, free_port, migrated_environment, served, verbs, worked
from support.processes import until as until_now

pytestmark = pytest.mark.anyio

META = {"temperature": 0.5, "tokens_limit": 1000, "stop_words": ["stop"], "model": "gpt-model"}
GENERATE = {"job_id": "12345", "meta": META, "content": "What is AI?"}
CHAT = {
    "job_id": "12345",
    "meta": META,
    "messages": [
        {"role": "user", "content": "What is AI?"},
        {"role": "assistant", "content": "Artificial Intelligence is..."},
    ],
}
ROUTES = {"/generate": GENERATE, "/chat_completion": CHAT}


async def status_of(server: Live, token: str, job_id: str) -> dict[str, Any]:
    status, response = await server.ask("GET", f"/check_status?job_id={job_id}", token)
    assert status == 200, response
    return response


@pytest.mark.parametrize("route", ROUTES)
async def test_the_examples_of_the_document_are_answered(route: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("gpt-model")
        token = await server.token()

        assert await server.ask("POST", route, token, json=ROUTES[route]) == (200, {"content": "What is AI?"})
        assert await server.ask("POST", "/check_status?job_id=12345", token) == (
            200,
            {"job_id": "12345", "job_status": "completed", "content": "What is AI?", "error": None},
        )


@pytest.mark.parametrize("route", ROUTES)
async def test_all_fields_of_meta_reach_the_model(route: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as upstream:
        await server.model("gpt-model", kind="openai", url=upstream.at("answer"))
        token = await server.token()
        await server.ask("POST", route, token, json=ROUTES[route])
        await server.ask("POST", route, token, json=ROUTES[route] | {"job_id": "2", "meta": {"model": "gpt-model"}})

        first, second = [json.loads(request.body) for request in upstream.requests]
        messages = CHAT["messages"] if route == "/chat_completion" else [{"role": "user", "content": "What is AI?"}]
        settings = {"model": "gpt-model", "messages": messages}
        assert first == settings | {"temperature": 0.5, "max_tokens": 1000, "stop": ["stop"]}
        assert second == settings | {"temperature": 0.2, "max_tokens": 8096}


async def test_the_requests_of_protollm_sdk_are_answered(tmp_path: Path) -> None:
    """Send what `LLMAPI.inference` and `.chat_completion` of protollm_sdk 1.2.0 send, with nulls for all defaults."""
    meta = {"temperature": None, "tokens_limit": None, "stop_words": None, "model": None}
    request = {"job_id": "1", "priority": None, "meta": meta}
    async with live(tmp_path) as server, fake_upstream() as upstream:
        await server.model("inner", kind="openai", url=upstream.at("answer"), default=True)
        token = await server.token()
        messages = [{"role": "user", "content": "x"}]
        for route, more in [
            ("/generate", {"content": "x"}),
            ("/chat_completion", {"source": "local", "messages": messages}),
        ]:
            status, answer = await server.ask("POST", route, token, json=request | more)
            assert (status, list(answer)) == (200, ["content"]), answer
        for sent in upstream.requests:
            body = json.loads(sent.body)
            assert (body["messages"], body["temperature"], body["max_tokens"]) == (messages, 0.2, 8096)
            assert "stop" not in body


async def test_the_same_id_with_the_same_body_joins_its_job_and_with_another_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"job_id": "mine", "meta": {"model": "echo/delay=0.2"}, "content": "hello"}

        answers = await asyncio.gather(*(server.ask("POST", "/generate", token, json=body) for _ in range(20)))
        assert answers == [(200, {"content": "hello"})] * 20
        assert (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 1

        status, response = await server.ask("POST", "/generate", token, json=body | {"content": "other"})
        assert (status, response["code"]) == (409, "job_id_taken")
        # and the same id of another user is another job
        other = await server.token(email="other@example.com")
        assert (await server.ask("GET", "/check_status?job_id=mine", other))[0] == 404
        assert (await server.ask("POST", "/generate", other, json=body | {"content": "x"}))[1] == {"content": "x"}


async def test_the_same_id_at_both_routes_names_two_jobs_and_the_status_is_that_of_the_newest(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    async with live(tmp_path, redis_url=redis_url, redis_prefix=prefix) as server, Redis.from_url(redis_url) as redis:
        await server.model("gpt-model")
        token = await server.token()
        chat = CHAT | {"messages": [{"role": "user", "content": "Hello?"}]}
        for route, body, text in [("/generate", GENERATE, "What is AI?"), ("/chat_completion", chat, "Hello?")]:
            for _ in range(2):  # the second request joins the job of the first one
                assert await server.ask("POST", route, token, json=body) == (200, {"content": text})
            assert (await status_of(server, token, "12345"))["content"] == text

            async def is_in_redis(text: str = text) -> bool | None:
                result = await redis.get(f"{prefix}:12345")
                return (result is not None and json.loads(result)["content"] == text) or None

            await until(is_in_redis)
            status, answer = await server.ask("POST", route, token, json=body | {"priority": 9, "meta": {}})
            assert (status, answer["code"]) == (409, "job_id_taken")


@pytest.mark.parametrize("how", [{"params": {"wait": "0"}}, {"headers": {"prefer": "respond-async"}}])
async def test_a_caller_that_does_not_wait_gets_a_202_and_polls(how: dict[str, Any], tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("held", review="always")
        token = await server.token("admin")
        body = {"job_id": "later", "meta": {"model": "held"}, "content": "hello"}

        assert await server.ask("POST", "/generate", token, json=body, **how) == (
            202,
            {"job_id": "later", "job_status": "pending"},
        )

        async def in_review() -> dict[str, Any] | None:
            response = await status_of(server, token, "later")
            return response if response["job_status"] == "in_review" else None

        assert (await until(in_review))["content"] is None
        job = (await server.ask("GET", "/api/jobs", token))[1]["data"][0]
        await server.ask("POST", "/reviewJob", token, json={"id": job["job_id"], "status": "success"})
        assert (await status_of(server, token, "later"))["content"] == "hello"


async def test_a_caller_that_waits_for_a_held_answer_gets_its_verdict(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("held", review="always")
        token, user = await server.token("admin"), await server.token()
        body = {"job_id": "h", "meta": {"model": "held"}, "content": "hello"}
        call = asyncio.ensure_future(server.ask("POST", "/generate", user, json=body))

        async def held_job_id() -> str | None:
            listed = (await server.ask("GET", "/api/jobs?status=human", token))[1]["data"]
            return listed[0]["job_id"] if listed else None

        job_id = await until(held_job_id)
        assert await server.ask("POST", "/generate?wait=0.05", user, json=body) == (
            504,
            {
                "detail": f"The answer waits for a review; query job {job_id} later.",
                "code": "review_pending",
                "job_id": job_id,
            },
        )
        await server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "fail", "reason": "No."})
        status, response = await call
        assert (status, response["code"]) == (403, "rejected")


async def test_a_failing_model_gives_an_error_and_blocks_no_caller(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"job_id": "e", "meta": {"model": "echo/status=400"}, "content": "hello"}
        status, response = await server.ask("POST", "/generate", token, json=body)
        assert status == 400
        assert response["detail"]
        job = await status_of(server, token, "e")
        assert (job["job_status"], job["content"], job["error"]["status"]) == ("error", None, 400)


async def test_a_wait_that_times_out_names_the_job_which_goes_on(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"job_id": "slow", "meta": {"model": "echo/delay=3"}, "content": "hello"}
        status, response = await server.ask("POST", "/generate", token, json=body, params={"wait": "0.05"})
        assert (status, response["code"]) == (504, "job_pending")
        assert (await status_of(server, token, "slow"))["job_status"] in {"pending", "in_progress"}
        assert await server.ask("POST", "/generate", token, json=body) == (200, {"content": "hello"})


async def test_the_server_answers_others_while_many_wait(tmp_path: Path) -> None:
    async with live(tmp_path, concurrency=2) as server:
        token = await server.token()
        body = {"meta": {"model": "echo/hang"}, "content": "hello"}
        calls = [
            asyncio.ensure_future(server.ask("POST", "/generate", token, json=body, params={"wait": "6"}))
            for _ in range(50)
        ]
        assert (await server.ask("GET", "/liveness"))[0] == 200
        assert not any(call.done() for call in calls)
        assert {status for status, _ in await asyncio.gather(*calls)} == {504}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"job_id": "1"},
        {"content": 5},
        {"messages": []},
        {"messages": "hello"},
        {"content": "x", "messages": [{}], "job_id": ""},
        {"content": "x", "messages": [{}], "job_id": "a\x00b"},
        {"content": "x", "messages": [{}], "job_id": "i" * 256},
        {"content": "x", "messages": [{}], "job_id": 12345},
        {"content": "x", "messages": [{}], "meta": {"tokens_limit": 0}},
        {"content": "x", "messages": [{}], "meta": {"stop_words": "stop"}},
        {"content": "x", "messages": [{}], "priority": 10},
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_an_invalid_body_is_refused_with_the_reason(route: str, body: dict[str, Any], tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await server.ask("POST", route, await server.token(), json=body)
        is_missing = ("content" if route == "/generate" else "messages") not in body
        assert (status, response["code"]) == (400, "missing_required_parameter" if is_missing else "bad_request")
        assert response["detail"]


async def test_an_unknown_job_is_a_404(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        assert (await server.ask("GET", "/check_status?job_id=nobody", token))[0] == 404
        assert (await server.ask("GET", "/check_status", token))[0] == 400


async def test_an_answer_that_comes_before_its_caller_waits_is_not_missed(tmp_path: Path) -> None:
    """Guard against a bug of the original, which subscribed after it had submitted and so missed quick answers."""
    async with live(tmp_path) as server:
        token = await server.token()
        quick = {"meta": {"model": "echo"}}
        async with asyncio.timeout(LIMIT_SECONDS):
            answers = await asyncio.gather(
                *(server.ask("POST", "/generate", token, json=quick | {"content": str(n)}) for n in range(100))
            )
        assert answers == [(200, {"content": str(number)}) for number in range(100)]


async def test_a_job_whose_worker_dies_is_answered_by_another_while_its_caller_waits(tmp_path: Path) -> None:
    """Guard against a bug of the original, whose worker removed a message from the queue before it was done."""
    environment, port = migrated_environment(tmp_path / "data", SIGNOFF_LEASE_SECONDS="6"), free_port()

    def kill_the_worker() -> tuple[Any, list[str]]:
        with served(environment, tmp_path, port, "--no-work"), worked(environment) as victim:
            token = first_token(tmp_path)
            body = {"job_id": "mine", "content": "hello", "meta": {"model": "echo/delay=3"}}
            with ThreadPoolExecutor(1) as threads:
                call = threads.submit(ask, port, "/generate", token, body)
                until_now(lambda: is_claimed(port, token) or None)
                victim.send_signal(signal.SIGKILL)
                with worked(environment):
                    response = call.result()
            [job] = ask(port, "/api/jobs", token)["data"]
            return response, verbs(port, token, job["job_id"])

    response, events = await asyncio.to_thread(kill_the_worker)
    assert response == {"content": "hello"}
    assert events == ["submit", "claim", "lapse", "claim", "succeed"]


def is_claimed(port: int, token: str) -> bool:
    jobs = ask(port, "/api/jobs", token)["data"]
    return bool(jobs) and jobs[0]["attempt"] == 1


@pytest.mark.parametrize("route", ROUTES)
async def test_a_queue_name_selects_the_model_of_the_settings(route: str, tmp_path: Path) -> None:
    async with live(tmp_path, queue_name="own", queues={"large": "echo/status=418", "gone": "nobody"}) as server:
        await server.model("gpt-model")
        token = await server.token()
        for name, expected in [("own", 200), ("large", 418), ("gone", 404), ("unknown", 404), ("", 404)]:
            body = ROUTES[route] | {"job_id": f"for-{name}"}
            status, answer = await server.ask("POST", route, token, json=body, params={"queue_name": name})
            assert status == expected, answer
        # a tenant's selector of models is refused, not ignored
        headers = {"x-label-selector": "tenant=a"}
        for path in (route, "/v1/models", "/openai/v1/chat/completions"):
            status, answer = await server.ask("POST", path, token, json=ROUTES[route], headers=headers)
            assert (status, "X-Label-Selector" in str(answer)) == (400, True), path
