"""Recorded and composed answers of several servers (see corpus/README.md), sent in packets of any size.

Each answer must pass unchanged, byte for byte, and its tokens must be counted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes.behaviours import CORPUS
from fakes.http_server import FakeServer, RecordedRequest, Reply, raw
from signoff.core.job import Job
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
NAMES = sorted(str(path.relative_to(CORPUS).with_suffix("")) for path in CORPUS.glob("*/*.http"))
# Answers of servers that leave out members of the events of a response.
COMPLETED = {"llama.cpp/response", "llama.cpp/response-streamed"}


@dataclass
class Exchange:
    """An exchange of the corpus, parsed without the code under test."""

    path: str
    request_body: bytes
    raw: bytes
    status: int
    content_type: str
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def payloads(self) -> list[Any]:
        """Return the JSON of the answer, or of each of its events."""
        if not self.is_stream:
            return [json.loads(self.body)]
        lines = self.body.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def exchange(name: str) -> Exchange:
    request = json.loads((CORPUS / f"{name}.json").read_text())
    raw = (CORPUS / f"{name}.http").read_bytes()
    head, _, body = raw.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in lines}
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    status, content_type = int(start.split(" ")[1]), headers["content-type"]
    return Exchange(request["path"], json.dumps(request["body"]).encode(), raw, status, content_type, body)


def unchunked(body: bytes) -> bytes:
    parts = list[bytes]()
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


class Player(FakeServer):
    """A server that answers every request with `pieces`, each in a write of its own."""

    pieces: tuple[bytes, ...] = ()

    async def reply(self, request: RecordedRequest) -> Reply:
        return raw(*self.pieces, end="close")


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Player, Live, str]]:
    """Yield a player, a server that has all models of the corpus in front of it, and a token."""
    async with (
        Player() as player,
        live(tmp_path_factory.mktemp("corpus"), log_before_answer=True) as server,
    ):
        for name in {json.loads(exchange(name).request_body)["model"] for name in NAMES}:
            await server.model(name, kind="openai", url=player.url, attempts=1)
        yield player, server, await server.token()


CUTS = st.lists(st.integers(min_value=1, max_value=20_000), max_size=30)
EVERY_BYTE = list(range(1, 4000))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=CUTS)
@example(cuts=[])
@example(cuts=EVERY_BYTE)
async def test_an_upstreams_answer_passes_byte_for_byte(
    name: str, cuts: list[int], played: tuple[Player, Live, str]
) -> None:
    player, server, token = played
    recorded = exchange(name)
    ends = [0, *sorted({cut for cut in cuts if cut < len(recorded.raw)}), len(recorded.raw)]
    player.pieces = tuple(recorded.raw[start:end] for start, end in pairwise(ends))
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "cache-control": "no-store"}
    async with server.http.post(server.url + recorded.path, data=recorded.request_body, headers=headers) as response:
        body, job_id = await response.read(), response.headers["x-signoff-job"]
        assert response.status == recorded.status
        assert response.content_type == recorded.content_type.partition(";")[0]
    # A model without the endpoint gets a chat after it.
    assert recorded.request_body in [request.body for request in player.requests]
    job = await until(lambda: ended_job(server, job_id))
    if recorded.status >= 400 or any(payload.get("error") for payload in recorded.payloads):
        check_failure(recorded, body, job)
    else:
        assert body == recorded.body or (name in COMPLETED and is_completed(recorded, body))
        assert job.status == "success"
        assert job.usage is not None
        counted = {"prompt_tokens": job.usage.prompt_tokens, "completion_tokens": job.usage.completion_tokens}
        assert counted.items() >= expected_usage(recorded).items()


def is_completed(recorded: Exchange, body: bytes) -> bool:
    """Return True if `body` is the upstream's answer with more members, which clients need."""
    events = body.split(b"\n\n")[:-1] if recorded.is_stream else [body]
    payloads = [json.loads(event.partition(b"data: ")[2] if recorded.is_stream else event) for event in events]
    return is_within(list(recorded.payloads), payloads)


def is_within(value: Any, whole: Any) -> bool:
    """Return True if `whole` has everything that `value` has."""
    match value, whole:
        case dict(), dict():
            return all(name in whole and is_within(value[name], whole[name]) for name in value)
        case list(), list():
            return len(value) == len(whole) and all(map(is_within, value, whole))
        case _:
            return value == whole


def check_failure(recorded: Exchange, body: bytes, job: Job) -> None:
    """Check that the body is the upstream's error, with its code as a string.

    In a stream, the error follows the events that came before it.
    """
    assert job.status == "fail"
    assert b"[DONE]" not in body
    if recorded.is_stream:
        *before, last = body.split(b"\n\n")[:-1]
        assert recorded.body.startswith(b"\n\n".join(before) + b"\n\n")
        body = last.removeprefix(b"data: ")
    error, upstream_error = json.loads(body)["error"], recorded.payloads[-1].get("error")
    if upstream_error is None:
        assert recorded.payloads[-1]["detail"] in error["message"]
    elif recorded.status in {401, 403, 404}:  # it names the model and what was denied
        assert upstream_error["message"] in error["message"]
    else:
        code = upstream_error.get("code")
        assert error == upstream_error | ({"code": str(code)} if isinstance(code, int) else {})


def expected_usage(recorded: Exchange) -> dict[str, int]:
    """Return the usage that the answer reports last, or else one token for each event with content."""
    usages = [payload.get("usage") or (payload.get("response") or {}).get("usage") for payload in recorded.payloads]
    reported = next((usage for usage in reversed(usages) if usage), None)
    if reported is None:
        return {"completion_tokens": sum(map(has_content, recorded.payloads))}
    prompt = reported["prompt_tokens"] if "prompt_tokens" in reported else reported["input_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reported.get("completion_tokens", reported.get("output_tokens", 0)),
    }


def has_content(event: Any) -> bool:
    choice = event["choices"][0]
    delta = choice.get("delta", {"text": choice.get("text")})
    return any(value for key, value in delta.items() if key != "role")


async def ended_job(server: Live, job_id: str) -> Job | None:
    job = await server.services.store.jobs.get(job_id)
    return job if job is not None and job.is_terminal else None


def test_the_corpus_has_every_kind_of_answer_of_every_server() -> None:
    servers = {name.partition("/")[0] for name in NAMES}
    assert servers == {"llama.cpp", "vllm", "openai", "ollama"}
    for server in servers:
        kinds = [name.partition("/")[2] for name in NAMES if name.startswith(f"{server}/")]
        assert {"chat", "chat-streamed", "chat-streamed-with-usage", "chat-tools-streamed"} <= set(kinds)
        assert any(name.startswith("error-") for name in kinds)
