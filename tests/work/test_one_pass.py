"""Work that a waiting call does once: reading its body, its headers and the answer. Counts of calls, and not times."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from fakes.behaviours import ANSWER
from fakes.http_server import RecordedRequest, Reply, whole
from fakes.upstream import fake_upstream
from signoff.core.api_paths import CHAT
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio
# Functions that decode a request on its way to the response cache, and then to a model; and those of an answer.
OF_REQUEST = {"decode_json", "read_members", "canonical_parameters"}
TO_MODEL = {"_is_chat", "with_model"}
OF_ANSWER = {"without_lone_surrogates", "_openai_usage", "is_complete"}
OF_HIT = {"is_completion"}
ADMISSION = {"read_body", "admit", "read_members", "requested_headers", "select_headers"}
STEPS = ADMISSION | {"discard"}
DECODERS = {msgspec.json.decode.__name__, "decode"}


class Calls:
    """Decodings by the name of the function that makes them, and calls of STEPS, in the event loop's thread."""

    def __init__(self) -> None:
        self.decodings = Counter[str]()
        self.steps = Counter[str]()

    def count(self, frame: FrameType, event: str, arg: Any) -> None:
        """Count one call, as a profile function of `sys`."""
        name = frame.f_code.co_name
        if "/signoff/" not in frame.f_code.co_filename or "/signoff/stores/" in frame.f_code.co_filename:
            return
        if event == "c_call" and arg.__name__ in DECODERS and is_of_msgspec(arg):
            self.decodings[name] += 1
        elif event == "call" and name in STEPS:
            self.steps[name] += 1


def is_of_msgspec(function: Any) -> bool:
    return function.__module__ == "msgspec._core" or isinstance(function.__self__, msgspec.json.Decoder)


@contextmanager
def counted() -> Generator[Calls]:
    """Count calls during the block."""
    calls = Calls()
    sys.setprofile(calls.count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def ask(server: Live, token: str, body: Any) -> tuple[Calls, str]:
    """Send a request; return what it cost, and the use of the cache."""
    headers = {"authorization": f"Bearer {token}", "openai-beta": "x"}
    with counted() as calls:
        async with server.http.post(server.url + CHAT, json=body, headers=headers) as response:
            await response.read()
    assert response.status == 200
    return calls, response.headers["x-signoff-cache"]


async def test_each_reader_reads_a_request_and_its_answer_once(tmp_path: Path) -> None:
    async def answer(_: RecordedRequest) -> Reply:
        return whole(ANSWER)

    async with fake_upstream(answer) as fake, live(tmp_path) as server:
        await server.model("m", kind="openai", url=fake.url)
        token = await server.token()
        await ask(server, token, chat("first", "m", temperature=0))  # fills the copies of models, callers and limits
        body = {"temperature": 0, **chat("hello", "m")}

        calls, cache = await ask(server, token, body)
        assert cache == "miss"
        assert calls.decodings == once(OF_REQUEST | TO_MODEL | OF_ANSWER)
        assert calls.steps == once(STEPS)

        calls, cache = await ask(server, token, body)
        assert cache == "hit"
        assert calls.decodings == once(OF_REQUEST | OF_HIT)
        assert calls.steps == once(ADMISSION)


def once(names: set[str]) -> Counter[str]:
    return Counter(names)
