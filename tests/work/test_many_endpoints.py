"""Models with several endpoints: balancing, failover, limits per endpoint, and fallbacks to other models."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from doors.test_openai_endpoints import REVIEWER, held
from fakes.behaviours import ANSWER, EVENTS
from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, json_reply, whole
from fakes.upstream import FakeUpstream, fake_upstream, full_upstream
from signoff.core.api_paths import CHAT
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import EndpointConfig, Timeouts
from signoff.core.price import Price, cost_of
from signoff.core.tokens import Usage
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.usage import add_price
from signoff.work.inference.ownership import storing_model
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, client, live, until, words
from support.processes import free_port

pytestmark = pytest.mark.anyio
# Long enough for a healthy endpoint on a busy machine.
SHORT_TIMEOUTS = Timeouts(connect_seconds=3, first_byte_seconds=3, total_seconds=60)
PRICES = {"mine": 1_000_000, "alt-*": 3_000_000}
UNRESPONSIVE = {"full", "hang-before-headers"}


async def register(server: Live, *urls: str, name: str = "mine", **more: Any) -> None:
    """Register a model with these endpoints."""
    endpoints = tuple(EndpointConfig(url=url) for url in urls)
    await server.model(name, **({"kind": "openai", "url": None, "endpoints": endpoints} | more))


def unused_url() -> str:
    """Return a URL at which no server listens."""
    return f"http://127.0.0.1:{free_port()}"


async def count_statuses(server: Live, token: str, count: int = 1, **more: Any) -> Counter[int]:
    """Send `count` requests at once, and count the statuses of their responses."""

    async def send(http: aiohttp.ClientSession, number: int) -> int:
        body, headers = chat(f"{number}", "mine", **more), {"authorization": f"Bearer {token}"}
        async with http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        return Counter(await asyncio.gather(*[send(http, number) for number in range(count)]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "sick",
    ["nowhere", "full", "broken", "too-many", "hang-before-headers", "leave", "cut-body", "html", "error-inside"],
)
async def test_no_caller_sees_an_error_while_one_of_two_endpoints_is_faulty(
    sick: str, stream: bool, tmp_path: Path
) -> None:
    with full_upstream() as full_url:
        async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
            url = {"nowhere": unused_url(), "full": full_url}.get(sick) or fake.at(sick)
            await register(
                server,
                url,
                fake.at("stream" if stream else "answer"),
                timeouts=SHORT_TIMEOUTS if sick in UNRESPONSIVE else Timeouts(),
            )
            token = await server.token()
            for _ in range(4):
                assert await count_statuses(server, token, 8, stream=stream) == {200: 8}
            # and the faulty endpoint gets few requests
            assert sum(request.path.startswith(f"/{sick}") for request in fake.requests) <= 10


async def test_a_stream_that_fails_before_its_first_content_goes_on_elsewhere(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        await register(server, fake.at("comments-and-cut"), name="backup", fallbacks=("third",))
        await register(server, fake.at("role-and-error"), fake.at("comments-and-cut"), fallbacks=("backup",))
        await server.model("third", kind="openai", url=fake.at("stream"))
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = chat("hello", "mine", stream=True)
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert await response.read() == b"".join(EVENTS)
            assert response.headers["x-signoff-model"] == "third"
        assert len(fake.requests) == 4


async def test_a_bad_request_is_not_retried_and_marks_no_endpoint_as_down(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("broken-by-number") + f"/{number}" for number in range(2)]
        await register(server, *urls, fallbacks=("echo",))
        assert await count_statuses(server, await server.token(), 20) == {400: 20}
        assert len(fake.requests) == 20


@pytest.mark.parametrize("other", ["endpoint", "fallback"])
async def test_a_fault_of_one_endpoint_reaches_no_caller_and_shows_in_its_health(other: str, tmp_path: Path) -> None:
    async with fake_upstream(answer_by_status) as fake, live(tmp_path) as server:
        admin = await server.token("admin")
        await register(server, f"{fake.url}/200", name="spare")
        for status in (401, 402, 403, 404, 405, 429, 501):
            name, urls = f"mine-{status}", [f"{fake.url}/{status}", f"{fake.url}/200"]
            more: dict[str, Any] = {"fallbacks": ("spare",)} if other == "fallback" else {}
            await register(server, *urls[: 1 if more else 2], name=name, attempts=1, **more)
            for number in range(8):
                assert (await server.ask("POST", CHAT, admin, json=chat(str(number), name)))[0] == 200, status
            _, model = await server.ask("GET", f"/api/models/{name}?health=true", admin)
            faulty = model["health"]["endpoints"][0]
            assert (faulty["ok"], faulty["state"]) == (False, "resting"), status
            assert "Sorry." in faulty["fault"]
            assert sum(request.path.startswith(f"/{status}") for request in fake.requests) <= 3


async def test_a_refusal_of_all_endpoints_comes_back_as_it_is_and_marks_none_as_down(tmp_path: Path) -> None:
    async with fake_upstream(answer_by_status) as fake, live(tmp_path) as server:
        token = await server.token()
        for status in (403, 404, 501):
            name = f"mine-{status}"
            await register(server, f"{fake.url}/{status}/1", f"{fake.url}/{status}/2", name=name)
            for _ in range(5):
                answer = await server.ask("POST", CHAT, token, json=chat("hello", name))
                assert (answer[0], "Sorry." in answer[1]["error"]["message"]) == (status, True)


async def test_the_key_of_a_caller_is_no_fault_of_an_endpoint(tmp_path: Path) -> None:
    async with fake_upstream(answer_by_status) as fake, live(tmp_path) as server:
        await register(server, f"{fake.url}/401/1", f"{fake.url}/401/2", fallbacks=("echo",))
        key = {"name": "mine", "key": "sk-of-the-caller"}
        _, created = await server.ask("POST", "/api/keys", await server.token(), json=key)
        user = await create_user(server.services, "user@example.com", "user")
        token = await create_token(server.services, user, key_id=created["id"])
        status, answer = await server.ask("POST", CHAT, token, json=chat("hello", "mine"))
        assert (status, answer["error"]["code"], len(fake.requests)) == (401, "model_access_denied", 1)
        assert "sk-of-the-caller" not in str(answer)
        assert fake.requests[0].headers["authorization"] == "Bearer sk-of-the-caller"


async def answer_by_status(request: RecordedRequest) -> Reply:
    """Answer with the status in the path, and quote the key of the request."""
    status = int(request.path.split("/")[1])
    if status == 200:
        return whole(ANSWER)
    key, code = request.headers.get("authorization"), "insufficient_quota" if status == 429 else None
    return json_reply({"error": {"message": f"Sorry. ({key})", "type": "x", "code": code}}, status=status)


async def test_a_request_is_not_retried_after_the_first_byte_of_its_answer(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, max_retries=0) as ai:
        await register(server, fake.at("cut-stream"), fake.at("cut-stream") + "/too", fallbacks=("echo",))
        pieces = list[str]()
        with pytest.raises(Exception, match="in the middle of its answer"):
            async for chunk in await ai.chat.completions.create(
                model="mine", messages=[{"role": "user", "content": "hello"}], stream=True
            ):
                pieces.append(chunk.choices[0].delta.content)
        assert pieces == ["one", " two"]
        assert len(fake.requests) == 1


async def test_with_all_endpoints_down_callers_get_a_503_until_one_is_back(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    async with live(tmp_path) as server:
        await register(server, *[f"http://127.0.0.1:{port}/answer" for port in ports], timeouts=SHORT_TIMEOUTS)
        token = await server.token()
        began = time.monotonic()
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(
            server.url + "/v1/chat/completions", json=chat("", "mine"), headers=headers
        ) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "model_down")
            assert 1 <= int(response.headers["retry-after"]) <= 30
        assert time.monotonic() - began < LIMIT_SECONDS
        # when one of them is back
        async with fake_upstream(port=ports[0]):

            async def has_recovered() -> bool | None:
                return await count_statuses(server, token, 3) == {200: 3} or None

            await until(has_recovered)


async def test_with_all_endpoints_hanging_the_error_comes_within_the_total_timeout(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("hang-before-headers") + f"/{number}" for number in range(2)]
        limits = Timeouts(connect_seconds=0.3, first_byte_seconds=0.2, total_seconds=1)
        await register(server, *urls, timeouts=limits)
        async with asyncio.timeout(60):
            (status,) = await count_statuses(server, await server.token())
        assert status in {503, 504}
        assert len(fake.requests) < 10


async def test_the_total_timeout_covers_all_tries(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("hang-before-headers") + f"/{number}" for number in range(20)]
        await register(server, *urls, timeouts=Timeouts(first_byte_seconds=0.4, total_seconds=1))
        began = time.monotonic()
        assert await count_statuses(server, await server.token()) == {504: 1}
        assert time.monotonic() - began > 0.9
        assert len(fake.requests) <= 3  # all twenty would take eight seconds


async def test_retry_after_of_an_endpoint_sets_its_cooldown_and_is_passed_on_to_callers(
    tmp_path: Path,
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await register(server, fake.at("too-many"), fake.at("too-many") + "/too")
        token = await server.token()
        for code in ("rate_limited", "model_down"):  # the upstream's error; then, with both cooling down, Signoff's
            headers = {"authorization": f"Bearer {token}"}
            url = server.url + "/v1/chat/completions"
            async with server.http.post(url, json=chat("", "mine"), headers=headers) as response:
                assert (await response.json())["error"]["code"] == code
                assert response.headers["retry-after"] in {"3", "4", "5", "6", "7"}
        assert len(fake.requests) == 2


async def test_no_request_fails_when_an_endpoint_dies_under_load(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, fake_upstream() as healthy, live(tmp_path, now_attempts=1) as server:
        dying: FakeUpstream = await stack.enter_async_context(fake_upstream())
        await register(server, dying.at("hang-before-headers"), healthy.at("answer-when-woken"))
        task = asyncio.ensure_future(count_statuses(server, await server.token(), 200))
        await until(lambda: _true_or_none(len(dying.requests) + len(healthy.requests) == 200))
        await stack.aclose()
        healthy.wake.set()
        assert await task == {200: 200}
        assert len(healthy.requests) == 200


async def _true_or_none(fact: bool) -> bool | None:
    """Return True if `fact` is true; else None, as `until` expects."""
    return fact or None


async def test_load_is_shared_evenly(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await register(server, *[fake.at("answer-when-woken") + f"/{number}" for number in range(4)])
        token = await server.token()
        # with a hundred calls in flight at once, each endpoint has a quarter of them
        task = asyncio.ensure_future(count_statuses(server, token, 100))
        await until(lambda: _true_or_none(len(fake.requests) == 100))
        fake.wake.set()
        assert await task == {200: 100}
        shares = Counter(request.path.split("/")[2] for request in fake.requests)
        assert set(shares.values()) == {25}, shares
        # and with one call at a time, they take turns
        for _ in range(100):
            await count_statuses(server, token)
        shares = Counter(request.path.split("/")[2] for request in fake.requests)
        assert set(shares.values()) == {50}, shares


async def test_the_turns_of_a_conversation_go_to_one_endpoint(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("answer") + f"/{number}" for number in range(4)]
        await register(server, *urls, balance="prefix-hash")
        token, paths = await server.token(), set[str]()
        for number in range(12):
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"}]
            before = len(fake.requests)
            for _ in range(3):
                body = {"model": "mine", "messages": messages}
                assert (await server.ask("POST", "/v1/chat/completions", token, json=body))[0] == 200
                messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
            turn_paths = {request.path for request in fake.requests[before:]}
            assert len(turn_paths) == 1
            paths |= turn_paths
        assert len(paths) > 1


async def test_each_endpoint_has_its_own_key_name_and_limit(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        admin = await server.token("admin")
        endpoints = [
            {"url": fake.at("answer") + "/a", "key": "sk-a", "upstream_model": "large-v2"},
            {"url": fake.at("answer") + "/b"},
        ]
        new = {"name": "mine", "kind": "openai", "key": "sk-all", "endpoints": endpoints}
        status, created = await server.ask("POST", "/api/models", admin, json=new)
        assert status == 201, created
        assert [(endpoint["url"], endpoint["has_key"]) for endpoint in created["endpoints"]] == [
            (endpoints[0]["url"], True),
            (endpoints[1]["url"], False),
        ]
        for _ in range(2):
            await count_statuses(server, admin)
        sent = {
            request.path.split("/")[2]: (request.headers["authorization"], json.loads(request.body)["model"])
            for request in fake.requests
        }
        assert sent == {"a": ("Bearer sk-a", "large-v2"), "b": ("Bearer sk-all", "mine")}
        # when the endpoints are replaced, one that existed before keeps its key
        _, changed = await server.ask(
            "PATCH", "/api/models/mine", admin, json={"endpoints": [{"url": endpoints[0]["url"]}], "max_parallel": 3}
        )
        assert changed["endpoints"][0]["has_key"]
        _, listed = await server.ask("GET", "/api/models", admin)
        assert "sk-" not in json.dumps([created, changed, listed])
        assert "key_id" not in json.dumps([created, changed, listed])


async def test_requests_over_the_parallel_limit_wait_and_get_a_429_if_too_many_wait(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        limits = {"url": fake.at("answer-when-woken"), "endpoints": ()}
        await register(server, max_parallel=2, max_waiting=3, **limits)
        token = await server.token()
        task = asyncio.ensure_future(count_statuses(server, token, 8))
        await fake.received(2)
        _, model = await server.ask("GET", "/api/models/mine?health=true", await server.token("admin"))
        (endpoint,) = model["health"]["endpoints"]
        assert (endpoint["load"], endpoint["state"], endpoint["resting_until"]) == (2, "up", None)
        await until(lambda: _has_waiting(server, 3))
        await until(lambda: _has_failed(server, 3))  # so all eight have come, and these are logged
        assert len(fake.requests) == 2
        fake.wake.set()
        assert await task == {200: 5, 429: 3}
        status, jobs = await server.ask("GET", "/jobs?status=fail", token)
        assert status == 200
        assert {job["error"]["code"] for job in jobs} == {"model_busy"}


async def _has_failed(server: Live, count: int) -> bool | None:
    """Return True if `count` failed calls are logged; else None."""
    return len(await server.services.store.jobs.list(JobFilter(status="fail"))) == count or None


async def _has_waiting(server: Live, count: int) -> bool | None:
    """Return True if `count` requests wait for a slot of the model; else None."""
    model = await server.services.caches.models.find("mine")
    return server.services.runtime.pools.of(model).waiting == count or None


async def test_a_client_that_leaves_frees_its_slot_or_its_place_in_the_queue(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        limits = {"url": fake.at("hang-before-headers"), "endpoints": ()}
        await register(server, max_parallel=1, max_waiting=1, **limits)
        token = await server.token()
        running_task = asyncio.ensure_future(count_statuses(server, token))
        await fake.received(1)
        for _ in range(3):
            waiting_task = asyncio.ensure_future(count_statuses(server, token))
            await until(lambda: _has_waiting(server, 1))
            waiting_task.cancel()
            await until(lambda: _has_waiting(server, 0))
        waiting_task = asyncio.ensure_future(count_statuses(server, token))
        await until(lambda: _has_waiting(server, 1))
        running_task.cancel()
        await fake.received(2)
        waiting_task.cancel()


async def test_jobs_without_a_free_slot_are_retried_later_and_none_is_lost(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, enqueue_review="never") as server:
        limits = {"url": fake.at("answer"), "endpoints": (), "attempts": 50}
        await register(server, max_parallel=1, max_waiting=0, default=True, **limits)
        token = await server.token()
        job_ids = [(await server.ask("POST", "/enqueue", token, json={"input": "x"}))[1]["job_id"] for _ in range(20)]
        for job_id in job_ids:
            job = await server.job_when(token, job_id, lambda job: job["status"] in {"success", "fail"})
            assert job["status"] == "success", job


# Fallbacks


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sick", ["nowhere", "broken", "too-many", "hang-before-headers"])
async def test_an_answer_of_a_fallback_is_named_in_the_job_and_in_a_header(
    sick: str, stream: bool, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        url = unused_url() if sick == "nowhere" else fake.at(sick)
        await register(
            server, url, fallbacks=("gone", "spare"), timeouts=SHORT_TIMEOUTS if sick in UNRESPONSIVE else Timeouts()
        )
        await server.model("spare", kind="openai", url=fake.at("stream" if stream else "answer"))
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = chat("hello", "mine", stream=stream)
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert (response.status, response.headers["x-signoff-model"]) == (200, "spare")
            assert not stream or await response.read() == b"".join(EVENTS)
        assert json.loads(fake.requests[-1].body)["model"] == "spare"
        job = await until(lambda: only_ended_job(server))
        assert (job.status, job.target, job.model) == ("success", "mine", "spare")


async def test_a_fallback_with_a_wildcard_is_recorded_by_the_requested_name(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        await register(server, unused_url(), fallbacks=("alt-3",))
        await server.model("alt-*", kind="openai", url=fake.at("answer"))
        prices = [Price(model=name, valid_from=0, input=cost, output=0) for name, cost in PRICES.items()]
        for price in prices:
            await add_price(server.services, price)
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = chat("hello", "mine")
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert (response.status, response.headers["x-signoff-model"]) == (200, "alt-3")
        job = await until(lambda: only_ended_job(server))
        assert (job.target, job.model) == ("mine", "alt-3")
        assert job.cost_nanodollars == cost_of(prices[1], Usage(prompt_tokens=job.prompt_tokens)) > 0
        assert storing_model(job) == "alt-3"


async def only_ended_job(server: Live) -> Job | None:
    """Return the only job once it has ended; else None."""
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if len(jobs) == 1 and jobs[0].is_terminal else None


async def test_fallbacks_of_fallbacks_are_tried_once_each_even_in_a_cycle(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        models = {"mine": ("b", "mine*"), "b": ("c",), "c": ("mine", "b")}
        for name, fallbacks in models.items():
            await server.model(name, kind="openai", url=fake.at("broken") + f"/{name}", fallbacks=fallbacks)
        token = await server.token()
        assert await count_statuses(server, token) == {500: 1}
        assert [request.path.split("/")[2] for request in fake.requests] == ["mine", "b", "c"]
        await server.model("c", fallbacks=("mine",))
        status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "mine"))
        assert (status, words(payload)) == (200, "hi")


async def test_a_model_whose_answers_are_reviewed_is_no_fallback_for_one_without_review(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        await server.model("careful", review="always")
        await register(server, fake.at("broken"), fallbacks=("careful",))
        assert await count_statuses(server, await server.token()) == {500: 1}
        # and the answer of a fallback is held if the answers of the requested model are held
        await register(server, fake.at("broken"), name="held", fallbacks=("echo",), review="always")
        task = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", await server.token(), json=chat("secret", "held"))
        )
        job = await until(lambda: held(server))
        assert (job.target, job.model) == ("held", "echo")
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert words((await task)[1]) == "secret"


@pytest.mark.parametrize("door", ["predict", "enqueue"])
async def test_every_door_uses_the_other_endpoint_if_one_is_down(door: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, enqueue_review="never") as server:
        await register(server, unused_url(), fake.at("mirror"), kind="http", name="mine", default=True)
        token = await server.token()
        for number in range(6):
            if door == "predict":
                response = await server.ask("POST", "/post/predict?id=mine", token, json={"number": number})
                assert response == (200, {"number": number})
            else:
                _, created = await server.ask("POST", "/enqueue", token, json={"number": number})
                job = await server.job_when(token, created["job_id"], lambda job: job["status"] in {"success", "fail"})
                assert job["response"] == {"number": number}
