"""Models at any HTTP address: any JSON in, any JSON out, and a specific error for each failure."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes.behaviours import ANSWER
from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.api_paths import PREDICT
from signoff.core.ask import CHAT, path_for
from signoff.core.model import Model, Timeouts
from signoff.engine import ModelRequest
from signoff.engines.http import HttpEngine
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelAnswered, ModelGarbled, ModelTimedOut, ModelUnreachable
from support.sinks import Events

pytestmark = pytest.mark.anyio
DEFAULT_TIMEOUTS = Timeouts()


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        yield fake


@pytest.fixture
async def engine() -> AsyncIterator[HttpEngine]:
    upstream = UpstreamClient(now=time.time)
    await upstream.start()
    yield HttpEngine(upstream)
    await upstream.close()


async def ask(
    engine: HttpEngine, url: str | None, body: bytes = b"{}", timeouts: Timeouts = DEFAULT_TIMEOUTS, **more: Any
) -> bytes:
    model = Model(name="theirs", kind="http", url=url, timeouts=timeouts)
    request = ModelRequest(**({"path": PREDICT, "body": body, "target": "theirs"} | more))
    events = Events()
    body = await engine.answer(model, request, events)
    return b"".join(events.received) if body is None else body


@pytest.mark.parametrize(
    "body", [b"null", b"[1, 2.50]", b'{"model":"mine","a":"\\u00fc"}', b'"text"', b'{ "b" : 1e3 }']
)
async def test_any_json_passes_byte_for_byte(fake: FakeUpstream, engine: HttpEngine, body: bytes) -> None:
    assert await ask(engine, fake.at("mirror"), body) == body


async def test_the_address_is_used_unchanged_whatever_the_path(fake: FakeUpstream, engine: HttpEngine) -> None:
    assert await ask(engine, fake.at("answer") + "/v2/infer?x=1", path=CHAT) == ANSWER
    assert fake.requests[-1].path == "/answer/v2/infer?x=1"


async def test_a_key_is_sent_with_its_own_request_alone(fake: FakeUpstream, engine: HttpEngine) -> None:
    await ask(engine, fake.at("answer"), key="sk-1")
    assert fake.requests[-1].headers["authorization"] == "Bearer sk-1"
    await ask(engine, fake.at("answer"))
    assert "authorization" not in fake.requests[-1].headers


@pytest.mark.parametrize("behaviour", ["html", "not-json", "nothing", "deep", "not-http"])
async def test_an_answer_that_is_not_json_is_a_502(fake: FakeUpstream, engine: HttpEngine, behaviour: str) -> None:
    with pytest.raises(ModelGarbled) as raised:
        await ask(engine, fake.at(behaviour))
    assert raised.value.status == 502


@pytest.mark.parametrize("behaviour", ["hang-before-headers", "hang-after-headers", "hang-mid-body"])
async def test_a_model_that_is_too_slow_is_a_504(fake: FakeUpstream, engine: HttpEngine, behaviour: str) -> None:
    with pytest.raises(ModelTimedOut) as raised:
        await ask(engine, fake.at(behaviour), timeouts=Timeouts(first_byte_seconds=0.3, between_chunks_seconds=0.3))
    assert raised.value.status == 504


@pytest.mark.parametrize(("behaviour", "status"), [("too-many", 429), ("broken", 500)])
async def test_a_models_own_errors_keep_their_status(
    fake: FakeUpstream, engine: HttpEngine, behaviour: str, status: int
) -> None:
    with pytest.raises(ModelAnswered) as raised:
        await ask(engine, fake.at(behaviour))
    assert raised.value.status == status


async def test_a_model_without_a_valid_address_or_an_open_port_is_unreachable(engine: HttpEngine) -> None:
    for url in (None, "http://127.0.0.1:9", "http://", "nonsense"):
        with pytest.raises(ModelUnreachable):
            await ask(engine, url)


@pytest.mark.parametrize(
    ("model", "path", "body", "expected_path"),
    [
        (Model(name="m", kind="echo"), PREDICT, {"a": 1}, CHAT),
        (Model(name="m", kind="openai"), PREDICT, {"messages": []}, CHAT),
        (Model(name="m", kind="subprocess", serve=True), PREDICT, 1, CHAT),
        (Model(name="m", kind="openai"), "/v1/embeddings", {"input": "a"}, "/v1/embeddings"),
        (Model(name="m", kind="http"), PREDICT, {"messages": []}, PREDICT),
        (Model(name="m", kind="http"), CHAT, {"messages": []}, CHAT),
        (Model(name="m", kind="http"), CHAT, {"input": "a"}, PREDICT),
        (Model(name="m", kind="subprocess"), CHAT, [1], PREDICT),
    ],
)
def test_a_payload_becomes_a_chat_only_for_models_that_accept_nothing_else(
    model: Model, path: str, body: object, expected_path: str
) -> None:
    assert path_for(model, path, json.dumps(body).encode()) == expected_path
