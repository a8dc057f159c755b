"""A model in several places, seen from its callers: who is asked, who is spared, what is told when nobody answers."""

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
from fakes.behaviours import EVENTS
from fakes.http_server import LIMIT_SECONDS
from fakes.upstream import FakeUpstream, fake_upstream, full_upstream
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.model import EndpointConfig, Timeouts
from signoff.core.price import Price, cost_of
from signoff.core.tokens import Usage
from signoff.work.admin.usage import add_price
from signoff.work.inference.ownership import owner_of
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, client, live, until, words
from support.processes import free_port

pytestmark = pytest.mark.anyio
# Long enough for an endpoint that is well on a busy machine.
QUICK = Timeouts(connect_seconds=3, first_byte_seconds=3, total_seconds=60)
PRICES = {"mine": 1_000_000, "alt-*": 3_000_000}
SILENT = {"full", "hang-before-headers"}


async def at(server: Live, *urls: str, name: str = "mine", **more: Any) -> None:
    """Registers a model with these endpoints."""
    endpoints = tuple(EndpointConfig(url=url) for url in urls)
    await server.model(name, **({"kind": "openai", "url": None, "endpoints": endpoints} | more))


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def answers(server: Live, token: str, count: int = 1, **more: Any) -> Counter[int]:
    """The statuses of so many requests at once."""

    async def one(http: aiohttp.ClientSession, number: int) -> int:
        body, headers = chat(f"{number}", "mine", **more), {"authorization": f"Bearer {token}"}
        async with http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as told:
            await told.read()
            return told.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        return Counter(await asyncio.gather(*[one(http, number) for number in range(count)]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sick", ["nowhere", "full", "broken", "too-many", "hang-before-headers", "leave", "cut-body"])
async def test_of_two_endpoints_one_is_sick_and_no_caller_sees_an_error(
    sick: str, stream: bool, tmp_path: Path
) -> None:
    with full_upstream() as unheard:
        async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
            url = {"nowhere": nowhere(), "full": unheard}.get(sick) or fake.at(sick)
            await at(
                server, url, fake.at("stream" if stream else "answer"), timeouts=QUICK if sick in SILENT else Timeouts()
            )
            token = await server.token()
            for _ in range(4):
                assert await answers(server, token, 8, stream=stream) == {200: 8}
            # and the sick one is not asked for ever
            assert sum(seen.path.startswith(f"/{sick}") for seen in fake.requests) <= 10


async def test_a_request_that_is_at_fault_itself_is_asked_once_and_harms_nobody(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("broken-by-number") + f"/{number}" for number in range(2)]
        await at(server, *urls, fallbacks=("echo",))
        assert await answers(server, await server.token(), 20) == {400: 20}
        assert len(fake.requests) == 20


async def test_nothing_is_asked_again_after_the_first_byte(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, max_retries=0) as ai:
        await at(server, fake.at("cut-stream"), fake.at("cut-stream") + "/too", fallbacks=("echo",))
        heard = list[str]()
        with pytest.raises(Exception, match="in the middle of its answer"):
            async for piece in await ai.chat.completions.create(
                model="mine", messages=[{"role": "user", "content": "hello"}], stream=True
            ):
                heard.append(piece.choices[0].delta.content)
        assert heard == ["one", " two"]
        assert len(fake.requests) == 1


async def test_when_all_are_dead_it_is_a_503_in_time_and_they_are_found_again_without_a_restart(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    async with live(tmp_path) as server:
        await at(server, *[f"http://127.0.0.1:{port}/answer" for port in ports], timeouts=QUICK)
        token = await server.token()
        began = time.monotonic()
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(
            server.url + "/v1/chat/completions", json=chat("", "mine"), headers=headers
        ) as told:
            assert (told.status, (await told.json())["error"]["code"]) == (503, "model_down")
            assert 1 <= int(told.headers["retry-after"]) <= 30
        assert time.monotonic() - began < LIMIT_SECONDS
        # when one of them is back
        async with fake_upstream(port=ports[0]):

            async def look() -> bool | None:
                return await answers(server, token, 3) == {200: 3} or None

            await until(look)


async def test_all_hang_and_the_503_comes_within_the_models_total(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("hang-before-headers") + f"/{number}" for number in range(2)]
        limits = Timeouts(connect_seconds=0.3, first_byte_seconds=0.2, total_seconds=1)
        await at(server, *urls, timeouts=limits)
        async with asyncio.timeout(60):
            (status,) = await answers(server, await server.token())
        assert status in {503, 504}
        assert len(fake.requests) < 10


async def test_the_total_holds_over_all_tries(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("hang-before-headers") + f"/{number}" for number in range(20)]
        await at(server, *urls, timeouts=Timeouts(first_byte_seconds=0.4, total_seconds=1))
        began = time.monotonic()
        assert await answers(server, await server.token()) == {504: 1}
        assert time.monotonic() - began > 0.9
        assert len(fake.requests) <= 3  # all twenty would take eight seconds


async def test_an_endpoint_says_how_long_it_rests_and_callers_are_told_of_the_first_that_returns(
    tmp_path: Path,
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await at(server, fake.at("too-many"), fake.at("too-many") + "/too")
        token = await server.token()
        for code in ("rate_limited", "model_down"):  # the upstream's own words, then, as both rest, ours
            headers = {"authorization": f"Bearer {token}"}
            url = server.url + "/v1/chat/completions"
            async with server.http.post(url, json=chat("", "mine"), headers=headers) as told:
                assert (await told.json())["error"]["code"] == code
                assert told.headers["retry-after"] in {"6", "7"}
        assert len(fake.requests) == 2


async def test_an_endpoint_is_killed_under_the_load_of_hundreds_and_nobody_notices(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, fake_upstream() as well, live(tmp_path, now_attempts=1) as server:
        dying: FakeUpstream = await stack.enter_async_context(fake_upstream())
        await at(server, dying.at("hang-before-headers"), well.at("answer-when-woken"))
        asking = asyncio.ensure_future(answers(server, await server.token(), 200))
        await until(lambda: _is_so(len(dying.requests) + len(well.requests) == 200))
        await stack.aclose()
        well.wake.set()
        assert await asking == {200: 200}
        assert len(well.requests) == 200


async def _is_so(fact: bool) -> bool | None:
    return fact or None


async def test_load_is_shared_evenly(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await at(server, *[fake.at("answer") + f"/{number}" for number in range(4)])
        token = await server.token()
        assert await answers(server, token, 100) == {200: 100}
        for _ in range(100):
            await answers(server, token)
        shares = Counter(seen.path.split("/")[2] for seen in fake.requests)
        assert all(40 <= share <= 60 for share in shares.values()), shares


async def test_the_turns_of_a_conversation_go_to_one_endpoint(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        urls = [fake.at("answer") + f"/{number}" for number in range(4)]
        await at(server, *urls, balance="prefix-hash")
        token, homes = await server.token(), set[str]()
        for number in range(12):
            said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"}]
            before = len(fake.requests)
            for _ in range(3):
                body = {"model": "mine", "messages": said}
                assert (await server.ask("POST", "/v1/chat/completions", token, json=body))[0] == 200
                said += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
            turns = {seen.path for seen in fake.requests[before:]}
            assert len(turns) == 1
            homes |= turns
        assert len(homes) > 1


async def test_each_endpoint_has_its_own_key_name_and_limit(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        admin = await server.token("admin")
        endpoints = [
            {"url": fake.at("answer") + "/a", "key": "sk-a", "upstream_model": "large-v2"},
            {"url": fake.at("answer") + "/b"},
        ]
        new = {"name": "mine", "kind": "openai", "key": "sk-all", "endpoints": endpoints}
        status, made = await server.ask("POST", "/api/models", admin, json=new)
        assert status == 201, made
        assert [(each["url"], each["has_key"]) for each in made["endpoints"]] == [
            (endpoints[0]["url"], True),
            (endpoints[1]["url"], False),
        ]
        for _ in range(2):
            await answers(server, admin)
        told = {
            seen.path.split("/")[2]: (seen.headers["authorization"], json.loads(seen.body)["model"])
            for seen in fake.requests
        }
        assert told == {"a": ("Bearer sk-a", "large-v2"), "b": ("Bearer sk-all", "mine")}
        # when the endpoints are given anew, one that was there keeps its key
        _, changed = await server.ask(
            "PATCH", "/api/models/mine", admin, json={"endpoints": [{"url": endpoints[0]["url"]}], "max_parallel": 3}
        )
        assert changed["endpoints"][0]["has_key"]
        _, listed = await server.ask("GET", "/api/models", admin)
        assert "sk-" not in json.dumps([made, changed, listed])
        assert "key_id" not in json.dumps([made, changed, listed])


async def test_more_than_its_limit_waits_in_line_and_beyond_that_is_a_429(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        limits = {"url": fake.at("answer-when-woken"), "endpoints": ()}
        await at(server, max_parallel=2, max_waiting=3, **limits)
        token = await server.token()
        asking = asyncio.ensure_future(answers(server, token, 8))
        await fake.received(2)
        _, found = await server.ask("GET", "/api/models/mine?health=true", await server.token("admin"))
        (endpoint,) = found["health"]["endpoints"]
        assert (endpoint["load"], endpoint["state"], endpoint["resting_until"]) == (2, "up", None)
        await until(lambda: _waiting(server, 3))
        assert len(fake.requests) == 2
        fake.wake.set()
        assert await asking == {200: 5, 429: 3}
        status, told = await server.ask("GET", "/jobs?status=fail", token)
        assert status == 200
        assert {job["error"]["code"] for job in told} == {"model_busy"}


async def _waiting(server: Live, count: int) -> bool | None:
    model = await server.services.caches.models.find("mine")
    return server.services.runtime.pools.of(model).waiting == count or None


async def test_who_leaves_the_line_or_its_seat_makes_room(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        limits = {"url": fake.at("hang-before-headers"), "endpoints": ()}
        await at(server, max_parallel=1, max_waiting=1, **limits)
        token = await server.token()
        seated = asyncio.ensure_future(answers(server, token))
        await fake.received(1)
        for _ in range(3):
            waiting = asyncio.ensure_future(answers(server, token))
            await until(lambda: _waiting(server, 1))
            waiting.cancel()
            await until(lambda: _waiting(server, 0))
        waiting = asyncio.ensure_future(answers(server, token))
        await until(lambda: _waiting(server, 1))
        seated.cancel()
        await fake.received(2)
        waiting.cancel()


async def test_jobs_that_find_no_turn_are_asked_later_and_none_is_lost(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, enqueue_review="never") as server:
        limits = {"url": fake.at("answer"), "endpoints": (), "attempts": 50}
        await at(server, max_parallel=1, max_waiting=0, default=True, **limits)
        token = await server.token()
        made = [(await server.ask("POST", "/enqueue", token, json={"input": "x"}))[1]["job_id"] for _ in range(20)]
        for job_id in made:
            job = await server.job_when(token, job_id, lambda job: job["status"] in {"success", "fail"})
            assert job["status"] == "success", job


# Fallbacks


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sick", ["nowhere", "broken", "too-many", "hang-before-headers"])
async def test_a_fallback_answers_and_the_job_and_a_header_say_so(sick: str, stream: bool, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        url = nowhere() if sick == "nowhere" else fake.at(sick)
        await at(server, url, fallbacks=("gone", "spare"), timeouts=QUICK if sick in SILENT else Timeouts())
        await server.model("spare", kind="openai", url=fake.at("stream" if stream else "answer"))
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = chat("hello", "mine", stream=stream)
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as told:
            assert (told.status, told.headers["x-signoff-model"]) == (200, "spare")
            assert not stream or await told.read() == b"".join(EVENTS)
        assert json.loads(fake.requests[-1].body)["model"] == "spare"
        job = await until(lambda: the_job(server))
        assert (job.status, job.target, job.model) == ("success", "mine", "spare")


async def test_a_fallback_for_many_names_is_known_by_the_name_that_was_asked(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        await at(server, nowhere(), fallbacks=("alt-3",))
        await server.model("alt-*", kind="openai", url=fake.at("answer"))
        prices = [Price(model=name, valid_from=0, input=cost, output=0) for name, cost in PRICES.items()]
        for price in prices:
            await add_price(server.services, price)
        headers = {"authorization": f"Bearer {await server.token()}"}
        body = chat("hello", "mine")
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as told:
            assert (told.status, told.headers["x-signoff-model"]) == (200, "alt-3")
        job = await until(lambda: the_job(server))
        assert (job.target, job.model) == ("mine", "alt-3")
        assert job.cost_nanodollars == cost_of(prices[1], Usage(prompt_tokens=job.prompt_tokens)) > 0
        assert owner_of(job) == "alt-3"


async def the_job(server: Live) -> Job | None:
    """The only one, once its row is written."""
    found = await server.services.store.jobs.list(JobFilter())
    return found[0] if len(found) == 1 and found[0].is_terminal else None


async def test_fallbacks_of_fallbacks_are_asked_once_each_and_cycles_end(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        circle = {"mine": ("b", "mine*"), "b": ("c",), "c": ("mine", "b")}
        for name, fallbacks in circle.items():
            await server.model(name, kind="openai", url=fake.at("broken") + f"/{name}", fallbacks=fallbacks)
        token = await server.token()
        assert await answers(server, token) == {500: 1}
        assert [seen.path.split("/")[2] for seen in fake.requests] == ["mine", "b", "c"]
        await server.model("c", fallbacks=("mine",))
        status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "mine"))
        assert (status, words(told)) == (200, "hi")


async def test_an_answer_that_needs_a_review_stands_in_for_none_that_leaves_unseen(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, now_attempts=1) as server:
        await server.model("careful", review="always")
        await at(server, fake.at("broken"), fallbacks=("careful",))
        assert await answers(server, await server.token()) == {500: 1}
        # while a fallback of a model whose own answers are held is held too
        await at(server, fake.at("broken"), name="held", fallbacks=("echo",), review="always")
        asking = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", await server.token(), json=chat("secret", "held"))
        )
        job = await until(lambda: held(server))
        assert (job.target, job.model) == ("held", "echo")
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert words((await asking)[1]) == "secret"


@pytest.mark.parametrize("door", ["predict", "enqueue"])
async def test_every_door_goes_one_way(door: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, enqueue_review="never") as server:
        await at(server, nowhere(), fake.at("mirror"), kind="http", name="mine", default=True)
        token = await server.token()
        for number in range(6):
            if door == "predict":
                told = await server.ask("POST", "/post/predict?id=mine", token, json={"number": number})
                assert told == (200, {"number": number})
            else:
                _, made = await server.ask("POST", "/enqueue", token, json={"number": number})
                job = await server.job_when(token, made["job_id"], lambda job: job["status"] in {"success", "fail"})
                assert job["response"] == {"number": number}
