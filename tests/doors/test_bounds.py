"""Bounds of numbers, times and names in requests: a value out of range is refused and never causes a 5xx."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes.upstream import fake_upstream
from signoff.doors.http import DoorSettings, read_body
from signoff.doors.router import MAX_PAGES, DoorRouter
from signoff.errors import TooLarge
from signoff.runtime.metrics import Metrics
from signoff.work.services import Services
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
HUGE = (2**31, 2**40, 2**63, 2**70)
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
# `str.isdigit` accepts both; `int` refuses `²`, and numbers of more than 4300 digits.
DIGITS = ("²", "9" * 5000)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the address of a database; None for a file."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def requests_with(number: int | str) -> list[tuple[str, str, Any]]:
    """Return one request, as (method, path, body), for each place that takes a number."""
    model = {"name": "m", "kind": "echo"}
    far = {"name": "m", "kind": "http", "endpoints": [{"url": "http://localhost", "max_parallel": number}]}
    counts = ("requests_per_minute", "tokens_per_minute", "parallel", "tokens_per_day", "tokens_per_month")
    return [
        ("GET", f"/jobs?offset={number}", None),
        ("GET", f"/jobs?limit={number}", None),
        ("GET", f"/api/jobs?limit={number}", None),
        ("GET", f"/api/usage?offset={number}", None),
        ("GET", f"/api/keys?after={number}", None),
        ("DELETE", f"/api/keys/{number}", None),
        ("GET", f"/api/users?after={number}", None),
        ("PATCH", f"/api/users/{number}", {"active": True}),
        ("GET", f"/api/tokens?limit={number}", None),
        ("POST", "/api/tokens", {"days": number}),
        ("POST", "/api/tokens", {"key_id": number}),
        ("DELETE", f"/api/tokens/{number}", None),
        ("GET", f"/api/sessions?after={number}", None),
        ("DELETE", f"/api/sessions/{number}", None),
        ("DELETE", f"/api/sessions?user_id={number}", None),
        ("GET", f"/api/prompts/p/versions?before={number}", None),
        ("GET", f"/api/prompts/p?version={number}", None),
        ("GET", f"/api/prompts/{number}", None),
        ("GET", f"/api/pipeline/args?pipeline_id={number}", None),
        ("PUT", "/api/prompts/p/labels/y", {"version": number}),
        ("POST", "/api/pipeline/call", {"pipeline_id": number}),
        ("POST", "/api/pipeline/call", {"pipeline_name": "p", "openaikey_id": number}),
        ("POST", "/api/jobs", {"body": {}, "priority": number}),
        ("POST", "/generate", {"content": "a", "priority": number}),
        ("POST", "/generate?wait=0", {"content": "a", "meta": {"tokens_limit": number}}),
        ("POST", f"/generate?wait={number}", {"content": "a", "priority": 10}),
        ("POST", "/reviewJob", {"id": "{held}", "status": "success", "round": number}),
        ("POST", "/api/models", model | {"attempts": number}),
        ("POST", "/api/models", model | {"max_parallel": number}),
        ("POST", "/api/models", model | {"max_waiting": number}),
        ("POST", "/api/models", model | {"replicas": number}),
        ("POST", "/api/models", model | {"kind": "subprocess", "command": "a", "limits": {"memory_mb": number}}),
        ("POST", "/api/models", far),
        *[("PUT", "/api/limits/each", {name: number}) for name in counts],
        ("PUT", f"/api/limits/token:{number}", {"parallel": 1}),
        ("DELETE", f"/api/limits/token:{number}", None),
        ("GET", f"/api/policies/p?version={number}", None),
        ("POST", "/api/policies/p/dry-run", {"last": number}),
        ("GET", f"/api/policies/p/planted?after={number}", None),
        ("DELETE", f"/api/policies/p/planted/{number}", None),
        ("PUT", "/api/policies/p", {"target": "x", "budget": {"answers": number, "share": 0.1, "audit_rate": 0.1}}),
        ("PUT", "/api/review-queues/q", {"digest_seconds": number}),
        ("GET", f"/api/receipts?after={number}", None),
        ("GET", f"/api/reviews/feedback?after={number}", None),
        ("GET", f"/api/reviews/figures?offset={number}", None),
        ("GET", f"/api/audit?after={number}", None),
        ("POST", "/api/reviews/{held}/draft", {"round": number}),
        ("GET", f"/v1/files?limit={number}", None),
        ("GET", f"/v1/batches?limit={number}", None),
        ("POST", "/v1/batches", BATCH | {"output_expires_after": {"anchor": "created_at", "seconds": number}}),
        ("GET", f"/v1/messages/batches?limit={number}", None),
        ("GET", f"/dashboard/jobs?token={number}", None),
        ("GET", f"/dashboard/review/{{held}}/media/{number}", None),
        ("POST", f"/dashboard/people/tokens/{number}/revoke", None),
        ("POST", f"/dashboard/people/users/{number}", None),
        ("POST", f"/dashboard/policies/p/planted/{number}/delete", None),
    ]


async def enqueue_held_job(server: Live, token: str) -> str:
    """Enqueue a job, wait until it is held, and return its id."""
    _, response = await server.ask("POST", "/enqueue", token, json=chat("hello"))
    await server.job_when(token, response["job_id"], lambda job: job["status"] == "human")
    return response["job_id"]


async def test_a_number_out_of_range_causes_no_server_error(database_url: str | None, tmp_path: Path) -> None:
    async with live(tmp_path, database_url=database_url) as server:
        token = await server.token("admin")
        await server.ask("POST", "/api/prompts", token, json={"name": "p", "body": "a"})
        job_id = await enqueue_held_job(server, token)
        faults = list[Any]()
        for number in HUGE:
            for method, path, body in requests_with(number):
                data = json.dumps(body).replace("{held}", job_id) if body else None
                status, response = await server.ask(method, path.replace("{held}", job_id), token, data=data)
                if status >= 500:
                    faults.append((method, path, body, response))
                await server.ask("DELETE", "/api/limits/each", token)
                await server.ask("DELETE", "/api/models/m", token)
        assert not faults


async def test_digits_that_int_cannot_read_are_no_number(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        job_id = await enqueue_held_job(server, token)
        for digits in DIGITS:
            for path in ("/v1/chat/completions", "/post/predict?id=echo"):
                headers = {"prefer": f"wait={digits}"}
                assert (await server.ask("POST", path, token, json=chat("hello"), headers=headers))[0] == 200
            form = f"id={job_id}&verdict=reject&round={digits}"
            assert (await server.ask("POST", "/dashboard/decide", token, data=form))[0] in {400, 409}
            assert (await server.ask("GET", f"/api/prompts/{digits}", token))[0] == 404
        body = f'{{"id": "{job_id}", "status": "fail"}}'
        await server.ask("POST", "/reviewJob", token, data=body)
        for digits in DIGITS:
            headers = {"accept": "text/event-stream", "last-event-id": digits}
            assert (await server.ask("GET", f"/api/jobs/{job_id}/events", token, headers=headers))[0] in {200, 204}


async def test_a_form_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        for byte in (b"\xff", b"%ff"):
            status, _ = await server.ask("POST", "/dashboard/decide", token, data=b"verdict=approve&round=1&id=" + byte)
            assert status == 400


TIMES = ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"]


@pytest.mark.parametrize("time", TIMES)
async def test_a_time_that_cannot_be_displayed_is_not_stored(time: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        price = {"model": "m", "input": "1", "output": "1", "valid_from": time}
        assert (await server.ask("PUT", "/api/prices", token, json=price))[0] in {200, 400}
        assert (await server.ask("GET", "/api/prices", token))[0] == 200
        quoted = time.replace("+", "%2B")
        for path in (f"/api/usage?since={quoted}", f"/api/usage?until={quoted}&by=hour"):
            assert (await server.ask("GET", path, token))[0] in {200, 400}
        status, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("hello"), "due_at": time})
        assert status in {202, 400}
        if status == 202:
            assert (await server.ask("GET", f"/api/jobs/{job['job_id']}", token))[0] == 200
            assert (await server.ask("GET", f"/api/jobs/{job['job_id']}/events", token))[0] == 200


async def test_token_counts_out_of_range_break_no_job_and_no_report(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mirror", kind="openai", url=fake.at("mirror"))
        token = await server.token()
        for count in (*HUGE, -1, -(2**70)):
            usage = {"usage": {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}}
            status, _ = await server.ask(
                "POST", "/v1/embeddings", token, json={"model": "mirror", "input": "a"} | usage
            )
            assert status in {200, 502}

        async def all_ended() -> bool | None:
            _, response = await server.ask("GET", "/api/jobs", token)
            return all(job["status"] in {"success", "fail"} for job in response["data"]) or None

        await until(all_ended)
        assert (await server.ask("GET", "/api/usage", token))[0] == 200


async def test_the_location_of_a_new_object_finds_names_in_any_script(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        assert await location(server, token, "/api/prompts", {"name": "привет", "body": "a"}) == "привет"
        for name in ("модель/1", "a b?", "50%"):
            assert await location(server, token, "/api/models", {"name": name, "kind": "echo"}) == name


async def location(server: Live, token: str, path: str, body: dict[str, Any]) -> str:
    """Create an object, and return its name as read from the URL in the `Location` header."""
    headers = {"authorization": f"Bearer {token}"}
    async with server.http.post(server.url + path, json=body, headers=headers) as response:
        assert response.status == 201
        url = response.headers["location"]
    status, created = await server.ask("GET", url, token)
    assert status == 200
    return created["name"]


async def test_a_header_names_a_model_in_any_script(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("модель", kind="http", url="http://localhost:1")
        await server.model("речь")
        headers = {"x-signoff-model": "модель", "authorization": f"Bearer {await server.token('admin')}"}
        async with server.http.get(server.url + "/v1/things", headers=headers) as response:
            payload = await response.json()
            assert response.status == 404
            assert "модель" in payload["error"]["message"]
        async with server.http.post(
            server.url + "/v1/chat/completions", json=chat("hello", "речь"), headers=headers
        ) as response:
            assert (response.status, response.headers["x-signoff-model"]) == (200, "речь")


@pytest.mark.parametrize(
    ("pieces", "limit", "read_pieces"),
    [(5, 60, 5), (5, 50, 5), (9, 50, 6), (2, 5, 2)],
)
async def test_a_body_within_its_limit_is_read_whole_and_a_larger_one_is_not_read_for_ever(
    pieces: int, limit: int, read_pieces: int
) -> None:
    messages = [{"type": "http.request", "body": b"a" * 10, "more_body": i < pieces} for i in range(1, pieces + 1)]
    rest = iter(messages)

    async def receive() -> Any:
        return next(rest)

    if pieces * 10 <= limit:
        assert await read_body({"headers": []}, receive, limit, discarded_bytes=20) == b"a" * pieces * 10
    else:
        with pytest.raises(TooLarge):
            await read_body({"headers": []}, receive, limit, discarded_bytes=20)
    assert len(list(rest)) == pieces - read_pieces


@pytest.mark.parametrize(("path", "most"), [("/dashboard/jobs", MAX_PAGES), ("/api/jobs", 3 * MAX_PAGES)])
async def test_a_few_pages_are_made_at_the_same_time(path: str, most: int) -> None:
    begun, may_end = 0, asyncio.Event()

    async def rest(_scope: Any, _receive: Any, _send: Any) -> None:
        nonlocal begun
        begun += 1
        await may_end.wait()

    async def unused(*_: Any) -> Any:
        """Receive and send nothing."""

    tasks = request_pages(path, rest, unused, 3 * MAX_PAGES)
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == most
    may_end.set()
    await asyncio.gather(*tasks)
    assert begun == 3 * MAX_PAGES


async def test_pages_whose_clients_read_slowly_do_not_block_others() -> None:
    begun, may_read = 0, asyncio.Event()

    async def rest(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal begun
        begun += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def read_slowly(_message: Any) -> None:
        await may_read.wait()

    tasks = request_pages("/dashboard/jobs", rest, read_slowly, 3 * MAX_PAGES)
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == 3 * MAX_PAGES
    may_read.set()
    await asyncio.gather(*tasks)


def request_pages(path: str, rest: Any, send: Any, number: int) -> list[asyncio.Future[None]]:
    """Request a path so many times at once, of a router with the application `rest`."""
    settings = DoorSettings(
        max_body_bytes=1, max_file_bytes=1, anonymous_role=None, enqueue_review="never", keep_alive_seconds=1
    )
    services = SimpleNamespace(runtime=SimpleNamespace(metrics=Metrics(lambda name: name), tracer=None))
    router = DoorRouter({}, rest, queue={}, services=cast("Services", services), door_settings=settings)
    scope = {"method": "GET", "path": path, "query_string": b"", "headers": [(b"x-request-id", b"a")]}
    return [asyncio.ensure_future(router(dict(scope), send, send)) for _ in range(number)]
