"""Answers of several servers, as they were recorded or composed (see corpus/README.md), in packets of any size: what
comes out of our socket is what came in, to the byte, and its tokens are counted.
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


@dataclass
class Exchange:
    """One exchange of the corpus, read by other means than ours."""

    path: str
    asked: bytes
    raw: bytes
    status: int
    kind: str
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.kind.startswith("text/event-stream")

    @property
    def told(self) -> list[Any]:
        """The JSON of the answer, or of each of its events."""
        if not self.is_stream:
            return [json.loads(self.body)]
        lines = self.body.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def exchange(name: str) -> Exchange:
    asked = json.loads((CORPUS / f"{name}.json").read_text())
    raw = (CORPUS / f"{name}.http").read_bytes()
    head, _, body = raw.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in lines}
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    status, kind = int(start.split(" ")[1]), headers["content-type"]
    return Exchange(asked["path"], json.dumps(asked["body"]).encode(), raw, status, kind, body)


def unchunked(body: bytes) -> bytes:
    parts = list[bytes]()
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


class Player(FakeServer):
    """A server that answers every request with `pieces`, a write each."""

    pieces: tuple[bytes, ...] = ()

    async def reply(self, request: RecordedRequest) -> Reply:
        return raw(*self.pieces, end="close")


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Player, Live, str]]:
    """Yield a player, a server in front of it under every name that the corpus asks for, and a token."""
    async with (
        Player() as player,
        live(tmp_path_factory.mktemp("corpus"), log_before_answer=True) as ours,
    ):
        for name in {json.loads(exchange(name).asked)["model"] for name in NAMES}:
            await ours.model(name, kind="openai", url=player.url, attempts=1)
        yield player, ours, await ours.token()


CUTS = st.lists(st.integers(min_value=1, max_value=20_000), max_size=30)
EVERY_BYTE = list(range(1, 4000))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=CUTS)
@example(cuts=[])
@example(cuts=EVERY_BYTE)
async def test_what_an_upstream_says_comes_out_to_the_byte(
    name: str, cuts: list[int], played: tuple[Player, Live, str]
) -> None:
    player, server, token = played
    one = exchange(name)
    ends = [0, *sorted({cut for cut in cuts if cut < len(one.raw)}), len(one.raw)]
    player.pieces = tuple(one.raw[start:end] for start, end in pairwise(ends))
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "cache-control": "no-store"}
    async with server.http.post(server.url + one.path, data=one.asked, headers=headers) as response:
        body, job_id = await response.read(), response.headers["x-signoff-job"]
        assert response.status == one.status
        assert response.content_type == one.kind.partition(";")[0]
    assert player.requests[-1].body == one.asked
    job = await until(lambda: ended(server, job_id))
    if one.status >= 400 or any(told.get("error") for told in one.told):
        is_failure(one, body, job)
    else:
        assert body == one.body
        assert job.status == "success"
        assert job.usage is not None
        used = {"prompt_tokens": job.usage.prompt_tokens, "completion_tokens": job.usage.completion_tokens}
        assert used.items() >= tokens(one).items()


def is_failure(one: Exchange, body: bytes, job: Job) -> None:
    """The upstream's own error, whose code is a text now; after what came before it, where it ended a stream."""
    assert job.status == "fail"
    assert b"[DONE]" not in body
    if one.is_stream:
        *before, last = body.split(b"\n\n")[:-1]
        assert one.body.startswith(b"\n\n".join(before) + b"\n\n")
        body = last.removeprefix(b"data: ")
    got, told = json.loads(body)["error"], one.told[-1].get("error")
    if told is None:
        assert got["message"] == one.told[-1]["detail"]
    else:
        code = told.get("code")
        assert got == told | ({"code": str(code)} if isinstance(code, int) else {})


def tokens(one: Exchange) -> dict[str, int]:
    """The tokens that the answer tells last, else one for each event that says something."""
    told = [each.get("usage") or (each.get("response") or {}).get("usage") for each in one.told]
    used = next((usage for usage in reversed(told) if usage), None)
    if used is None:
        return {"completion_tokens": sum(map(says_something, one.told))}
    prompt = used["prompt_tokens"] if "prompt_tokens" in used else used["input_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": used.get("completion_tokens", used.get("output_tokens", 0))}


def says_something(event: Any) -> bool:
    choice = event["choices"][0]
    said = choice.get("delta", {"text": choice.get("text")})
    return any(value for key, value in said.items() if key != "role")


async def ended(server: Live, job_id: str) -> Job | None:
    job = await server.services.store.jobs.get(job_id)
    return job if job is not None and job.is_terminal else None


def test_the_corpus_has_every_kind_of_answer_of_every_server() -> None:
    servers = {name.partition("/")[0] for name in NAMES}
    assert servers == {"llama.cpp", "vllm", "openai", "ollama"}
    for server in servers:
        about = [name.partition("/")[2] for name in NAMES if name.startswith(f"{server}/")]
        assert {"chat", "chat-streamed", "chat-streamed-with-usage", "chat-tools-streamed"} <= set(about)
        assert any(name.startswith("error-") for name in about)
