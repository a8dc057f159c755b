"""Requests of a batch with values that are JSON, but that no endpoint takes: they fail alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.batches import created, ended, new_user, results
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
HUGE = "9" * 400
CHAT = '"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5'
NO_MODELS = {
    "number": "5",
    "boolean": "true",
    "array": "[]",
    "object": '{"name": "echo"}',
    "infinity": "1e999",
    "nul": '"a\\u0000b"',
    "label-nul": '"shout@\\u0000"',
    "label-number": f'"shout@{HUGE}"',
    "option": '"echo/delay=1e999"',
    "long": f'"{"m" * 10_000}"',
}
NO_VALUES = {
    "far": "1e99999",
    "digits": HUGE,
    "deep": "[" * 900 + "]" * 900,
}


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the address of a database; None for a file."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def server(database_url: str | None, tmp_path: Path) -> AsyncIterator[Live]:
    """Yield a server with a prompt and a pipeline."""
    async with live(tmp_path, database_url=database_url) as server:
        token = await server.token()
        await server.ask("POST", "/api/prompts", token, json={"name": "shout", "body": "{text}!", "model": "echo"})
        await server.ask("POST", "/api/pipelines", token, json={"name": "loud", "body": "shout(text)"})
        yield server


def odd_bodies() -> dict[str, str]:
    """Return bodies of requests by their names."""
    bodies = {f"model-{name}": f'{{"model": {model}, {CHAT}}}' for name, model in NO_MODELS.items()}
    for target in ("echo", "shout", "loud"):
        for name, value in NO_VALUES.items():
            bodies[f"{target}-{name}"] = f'{{"model": "{target}", {CHAT}, "more": {value}}}'
            content = f'"messages": [{{"role": "user", "content": [{value}]}}], "max_tokens": 5'
            bodies[f"{target}-{name}-content"] = f'{{"model": "{target}", {content}}}'
    return bodies


async def test_a_message_batch_answers_all_requests_beside_odd_ones(server: Live) -> None:
    requests = odd_bodies() | {"first": f'{{"model": "echo", {CHAT}}}'}
    lines = [f'{{"custom_id": "{name}", "params": {body}}}' for name, body in requests.items()]
    lines.append(f'{{"custom_id": "last", "params": {{"model": "echo", {CHAT}}}}}')
    types = await results_of(server, lines)
    assert types.keys() == {*requests, "last"}
    assert {name: types[name][0] for name in ("first", "last")} == {"first": "succeeded", "last": "succeeded"}
    for name in NO_MODELS:
        assert types[f"model-{name}"][0] == "errored"
    assert types["model-number"][1] == "invalid_request_error"
    assert types["shout-far"][1] == types["loud-far-content"][1] == "invalid_request_error"


async def test_a_batch_answers_all_lines_beside_odd_ones(server: Live) -> None:
    start = '"method": "POST", "url": "/v1/chat/completions", "body": {"model": "shout"'
    lines = [
        f'{{"custom_id": "first", {start}, {CHAT}}}}}',
        f'{{"custom_id": "far", {start}, {CHAT}, "more": 1e99999}}}}',
        f'{{"custom_id": 5, "custom_id": "doubled", "body": 5, {start}, {CHAT}}}}}',
        f'{{"custom_id": "last", {start}, {CHAT}}}}}',
    ]
    async with new_user(server) as ai:
        owner = {"name": "shout", "body": "{text}!", "model": "echo", "shared": True}
        await server.ask("PUT", "/api/prompts/shout", await server.token(), json=owner)
        done = await ended(ai, await created(ai, *lines))
        answers = await results(ai, done.output_file_id)
        assert [line["custom_id"] for line in answers] == ["first", "doubled", "last"]
        [error] = await results(ai, done.error_file_id)
        assert (error["custom_id"], error["response"]["status_code"]) == ("far", 400)


async def results_of(server: Live, requests: list[str]) -> dict[str, tuple[str, str | None]]:
    """Make a message batch; return the type of each result, and that of its error, by `custom_id`."""
    token = await server.token()
    body = f'{{"requests": [{", ".join(requests)}]}}'
    status, batch = await server.ask("POST", "/v1/messages/batches", token, data=body)
    assert status == 200, batch

    async def results_text() -> str | None:
        url, headers = f"{server.url}/v1/messages/batches/{batch['id']}/results", {"x-api-key": token}
        async with server.http.get(url, headers=headers) as response:
            return await response.text() if response.status == 200 else None

    lines: list[dict[str, Any]] = [json.loads(line) for line in (await until(results_text)).splitlines()]
    ends = {line["custom_id"]: line["result"] for line in lines}
    return {name: (end["type"], end.get("error", {}).get("error", {}).get("type")) for name, end in ends.items()}
