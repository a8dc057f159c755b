"""Models that are programs which speak JSON lines: each caller gets their own answer, or a clear error."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.programs import ENGINE_OWNER, JSON_LINES_MODEL, PLAIN_LINES_MODEL, alive, is_alive, starts, until
from signoff.core.answer import Chunk, collect
from signoff.core.model import Model, Timeouts
from signoff.engine import ModelRequest
from signoff.engines import jsonl
from signoff.engines.log import ModelLog
from signoff.engines.process import start_jsonl
from signoff.engines.subprocess import SubprocessEngine
from signoff.errors import (
    ModelAnswered,
    ModelCrashed,
    ModelFailed,
    ModelGarbled,
    ModelTimedOut,
    ModelUnreachable,
    Overloaded,
)
from support.engines import an_engine

pytestmark = pytest.mark.anyio

Engines = Callable[..., AbstractAsyncContextManager[SubprocessEngine]]


@pytest.fixture
def heard() -> list[str]:
    """Return what the models of this test write to their logs."""
    return []


@pytest.fixture
def engine_here(tmp_path: Path, heard: list[str]) -> Engines:
    """An engine as each server process of this host has one; all share a folder, whose name is a long one."""
    return partial(an_engine, tmp_path / ("a-long-way-down" * 10) / "run", heard)


@pytest.fixture
async def engine(engine_here: Engines) -> AsyncIterator[SubprocessEngine]:
    async with engine_here() as engine:
        yield engine


@pytest.fixture
def by_id(journal: Path) -> Model:
    """One that answers many at once, by their ids."""
    command = (sys.executable, "-S", str(JSON_LINES_MODEL), str(journal))
    return Model(name="by id", kind="subprocess", command=command)


@pytest.fixture
def plain() -> Model:
    """One that knows of no ids."""
    return Model(name="plain", kind="subprocess", command=(sys.executable, "-S", str(PLAIN_LINES_MODEL)))


def program(name: str, code: str, **more: Any) -> Model:
    return Model(name=name, kind="subprocess", command=(sys.executable, "-S", "-c", code), **more)


async def chunks(engine: SubprocessEngine, model: Model, body: Any, **more: Any) -> list[Chunk]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = ModelRequest(**({"path": "/predict", "body": raw, "target": model.name} | more))
    async with asyncio.timeout(60), aclosing(engine.answer(model, request)) as answer:
        return [chunk async for chunk in answer]


async def ask(engine: SubprocessEngine, model: Model, body: Any, **more: Any) -> Any:
    [chunk] = await chunks(engine, model, body, **more)
    return json.loads(chunk.raw)


async def at_once(*asking: Any) -> list[Any]:
    """What each of them came to, errors too."""

    async def outcome(one: Any) -> Any:
        try:
            return await one
        except ModelFailed as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(one)) for one in asking]
    return [task.result() for task in tasks]


# Answers


async def test_answers_come_by_their_ids_in_any_order(engine: SubprocessEngine, by_id: Model) -> None:
    bodies = [{"number": number, "seconds": (50 - number) / 50} for number in range(50)]
    ended = list[int]()

    async def asked(body: dict[str, Any]) -> Any:
        answer = await ask(engine, by_id, body)
        ended.append(body["number"])
        return answer

    answers = await at_once(*(asked(body) for body in bodies))
    assert [answer["asked"] for answer in answers] == bodies
    assert len({answer["pid"] for answer in answers}) == 1
    assert ended.index(49) < ended.index(0)  # the program had asked for the longest first


async def test_a_program_that_knows_of_no_ids_answers_in_order(engine: SubprocessEngine, plain: Model) -> None:
    answers = await at_once(*(ask(engine, plain, number) for number in range(500)))
    assert [answer["of"] for answer in answers] == list(range(500))


@pytest.mark.parametrize(
    "body",
    [
        None,
        True,
        0,
        1e300,
        "",
        "Grüße 世界 \u2028\u0000\n\r",
        [],
        {},
        {"id": "x", "body": 1},
        [[[[]]]],
        "x" * 3_000_000,
    ],
)
async def test_any_json_goes_in_and_comes_out(engine: SubprocessEngine, by_id: Model, plain: Model, body: Any) -> None:
    assert (await ask(engine, by_id, body))["asked"] == body
    assert (await ask(engine, plain, body))["of"] == body


async def test_a_body_of_many_lines_is_one_line(engine: SubprocessEngine, by_id: Model, plain: Model) -> None:
    body = b'{"a":\n\r\n 1,\r"b":\n[2]\n}\n'
    assert (await ask(engine, by_id, body))["asked"] == {"a": 1, "b": [2]}
    assert (await ask(engine, plain, body))["of"] == {"a": 1, "b": [2]}


async def test_a_program_is_told_what_is_asked_for(engine: SubprocessEngine, by_id: Model) -> None:
    assert (await ask(engine, by_id, {}))["operation"] == "predict"
    assert (await ask(engine, by_id, {}, path="/v1/chat/completions"))["operation"] == "chat/completions"


async def test_python_needs_no_flush_and_any_program_will_do(engine: SubprocessEngine) -> None:
    for command in (("cat",), ("sh", "-c", 'while read -r line; do echo "$line"; done'), ("sed", "-u", "s/1/1/")):
        model = Model(name=command[0], kind="subprocess", command=command)
        assert await ask(engine, model, {"number": 1}) == {"number": 1}
    unflushed = program("unflushed", "import sys\nfor line in sys.stdin: print('[1]')")
    assert await ask(engine, unflushed, {}) == [1]


async def test_an_answer_with_an_id_of_its_own_is_a_plain_one(engine: SubprocessEngine) -> None:
    model = program("own", 'import sys\nfor line in sys.stdin: print(\'{"id": "1", "body": 2}\')')
    assert await ask(engine, model, {}) == {"id": "1", "body": 2}


async def test_pieces_are_the_events_of_a_stream(engine: SubprocessEngine, by_id: Model) -> None:
    events = await chunks(engine, by_id, {"pieces": ["Hel", "lo"]}, stream=True)
    assert events[-1].raw == b"data: [DONE]\n\n"
    said = json.loads(collect(events).body)
    assert said["choices"] == [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
    ]
    assert await ask(engine, by_id, {"pieces": ["Hel", "lo"]}) == "Hello"
    assert await ask(engine, by_id, {"pieces": [{"a": 1}, 2]}) == [{"a": 1}, 2]
    [first, *_] = await chunks(engine, by_id, {"pieces": [{"a": 1}]}, stream=True)
    assert first.raw == b'data: {"a": 1}\n\n'


async def test_a_programs_own_error_keeps_its_status(engine: SubprocessEngine, by_id: Model) -> None:
    with pytest.raises(ModelAnswered, match="too long") as raised:
        await ask(engine, by_id, {"error": {"message": "too long", "status": 422}})
    assert raised.value.status == 422
    for told in ("I cannot", {"message": "I cannot"}, {"message": "I cannot", "status": 200}):
        with pytest.raises(ModelFailed, match="I cannot") as raised:
            await ask(engine, by_id, {"error": told})
        assert (raised.value.status, raised.value.retryable) == (502, False)
    with pytest.raises(ModelFailed) as raised:
        await ask(engine, by_id, {"error": 'caf\u00e9 "x"\n'})
    assert raised.value.message == 'caf\u00e9 "x"\n'
    for strange in (17, [], {}, True, {"message": ["x"], "status": "y"}):
        with pytest.raises(ModelFailed):
            await ask(engine, by_id, {"error": strange})


async def test_a_pipe_that_cannot_be_had_leaves_none_behind(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes, pipe = list[tuple[int, int]](), os.pipe

    def few() -> tuple[int, int]:
        if len(pipes) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        pipes.append(pipe())
        return pipes[-1]

    monkeypatch.setattr(os, "pipe", few)
    with pytest.raises(OSError, match="Too many"):
        async with start_jsonl(plain, ModelLog(print)):
            pass
    await asyncio.sleep(0)  # in which our own ends close
    for end in (end for ends in pipes for end in ends):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


# Nonsense


async def test_what_is_not_json_fails_all_who_wait_for_a_program_without_ids(
    engine: SubprocessEngine, plain: Model
) -> None:
    """The order is all that it has: nobody may get another's answer."""
    said = await at_once(ask(engine, plain, {"says": "not json", "seconds": 0.2}), ask(engine, plain, 1))
    assert all(isinstance(error, ModelGarbled) and "not json" in error.message for error in said)
    assert (await ask(engine, plain, 2))["of"] == 2


async def test_a_line_too_many_ends_a_program_without_ids(engine: SubprocessEngine) -> None:
    """What it says next would be the answer to another's question."""
    code = "import sys, time\nfor line in sys.stdin:\n print('1'); time.sleep(.2); print('2')"
    twice = program("twice", code)
    assert await ask(engine, twice, {}) == 1
    await until(lambda: engine.process_state(twice) in {"stopped", "failed"})
    assert await ask(engine, twice, {}) == 1


async def test_noise_of_a_program_with_ids_disturbs_nobody(engine: SubprocessEngine, by_id: Model) -> None:
    await ask(engine, by_id, {})
    for noise in ("", "Loading 12 %", "{", "[1]", '{"id": "nobody", "body": 1}', '{"id": 7}', "\x00", "[" * 100_000):
        assert (await ask(engine, by_id, {"noise": noise}))["asked"] == {"noise": noise}


async def test_a_line_that_does_not_end_is_bounded(engine: SubprocessEngine, by_id: Model) -> None:
    assert len(await ask(engine, by_id, {"size": 1_000_000})) == 1_000_000
    with pytest.raises(ModelGarbled, match="a line of more than"):
        await ask(engine, by_id, {"size": jsonl.MAX_LINE_BYTES})
    assert await ask(engine, by_id, {})


async def test_one_who_does_not_answer_is_timed_out(engine: SubprocessEngine, by_id: Model, plain: Model) -> None:
    quick = Timeouts(first_byte_seconds=0.5)
    await ask(engine, by_id, {})
    with pytest.raises(ModelTimedOut, match=r"0\.5 s"):
        await ask(engine, msgspec.structs.replace(by_id, timeouts=quick), {"seconds": 5})
    assert engine.process_state(by_id) == "ready"
    # One without ids that is stuck answers nobody else: it is started anew.
    with pytest.raises(ModelTimedOut):
        await ask(engine, msgspec.structs.replace(plain, timeouts=quick), {"seconds": 60})
    assert (await ask(engine, plain, 1))["of"] == 1
    # Also where whoever asked it has left.
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await ask(engine, plain, {"seconds": 60})
    with pytest.raises(ModelTimedOut):
        await ask(engine, msgspec.structs.replace(plain, timeouts=quick), 1)
    assert (await ask(engine, plain, 2))["of"] == 2


async def test_what_a_program_does_not_read_is_bounded(engine: SubprocessEngine) -> None:
    deaf = program("deaf", "import time; time.sleep(600)")
    first = asyncio.ensure_future(ask(engine, deaf, "x" * 1_000_000))

    def buffered_bytes() -> int:
        life = engine._processes["deaf"]._instance if "deaf" in engine._processes else None
        lines = life and life.process and life.process.lines
        return lines._writer.transport.get_write_buffer_size() if lines else 0

    await until(lambda: buffered_bytes() > 500_000)
    first.cancel()
    for _ in range(4):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await ask(engine, deaf, "x" * 1_000_000)
    assert 500_000 < buffered_bytes() < 1_500_000


async def test_those_who_wait_behind_a_slow_answer_do_not_end_the_program(
    engine: SubprocessEngine, plain: Model
) -> None:
    quick = msgspec.structs.replace(plain, timeouts=Timeouts(first_byte_seconds=3))
    await ask(engine, quick, 0)
    said = await at_once(*(ask(engine, quick, {"seconds": 1.8, "number": number}) for number in range(5)))
    assert said[0]["of"]["number"] == 0
    assert isinstance(said[-1], ModelTimedOut)
    assert engine.process_state(plain) == "ready"


async def test_a_caller_who_leaves_takes_nobodys_answer_along(engine: SubprocessEngine, plain: Model) -> None:
    async def impatient(number: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1 + number / 100):
                await ask(engine, plain, {"seconds": 0.05, "number": number})

    await at_once(*(impatient(number) for number in range(10)))
    assert (await ask(engine, plain, "mine"))["of"] == "mine"


async def test_more_than_can_wait_are_turned_away(
    engine: SubprocessEngine, by_id: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_WAITING", 3)
    await ask(engine, by_id, {})
    waiting = [asyncio.ensure_future(ask(engine, by_id, {"seconds": 1})) for _ in range(3)]
    await until(lambda: engine.process_state(by_id) == "busy")
    with pytest.raises(Overloaded, match="3 requests already wait"):
        await ask(engine, by_id, {})
    assert len([await one for one in waiting]) == 3


# Ends


async def test_a_crash_is_told_to_all_who_wait_and_the_next_call_starts_it_again(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    async with engine_here() as owner, engine_here() as guest:
        first = (await ask(owner, by_id, {}))["pid"]
        assert (await ask(guest, by_id, {}))["pid"] == first
        waiting = [asyncio.ensure_future(ask(one, by_id, {"seconds": 60})) for one in [owner, guest] * 10]
        await until(lambda: owner.process_state(by_id) == "busy")
        await ask(guest, by_id, {})
        os.kill(first, signal.SIGKILL)
        for error in await at_once(*waiting):
            assert isinstance(error, ModelCrashed)
            assert "by id ended with status 137 before it answered" in error.message
        again = [(await ask(one, by_id, {}))["pid"] for one in (guest, owner)]
    assert again[0] == again[1] != first
    assert len(starts(journal)) == 2


async def test_a_program_that_is_not_there_is_named(engine: SubprocessEngine) -> None:
    with pytest.raises(ModelFailed, match=r"cannot run /there/is/no/model.*No such file"):
        await ask(engine, Model(name="lost", kind="subprocess", command=("/there/is/no/model",)), {})


async def test_a_close_answers_who_waits_and_leaves_no_process(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    async with engine_here() as guest:
        async with engine_here() as owner:
            await ask(owner, by_id, {})
            waiting = [asyncio.ensure_future(ask(one, by_id, {"seconds": 60})) for one in (owner, guest)]
            await ask(guest, by_id, {})
            await until(lambda: owner.process_state(by_id) == "busy")
        for error in await at_once(*waiting):
            assert isinstance(error, ModelCrashed | ModelUnreachable)
        await until(lambda: not alive(starts(journal)[0]))
        assert (await ask(guest, by_id, {}))["asked"] == {}
    assert len(starts(journal)) == 2


async def test_a_program_stops_when_idle_and_a_guests_call_is_use(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    lazy = msgspec.structs.replace(by_id, idle_seconds=1)
    async with engine_here() as owner, engine_here() as guest:
        owners = asyncio.ensure_future(ask(owner, lazy, {"seconds": 1}))
        await until(lambda: starts(journal))
        guests = await ask(guest, lazy, {"seconds": 2.5})
        first = (await owners)["pid"]
        assert guests["pid"] == first
        await until(lambda: not is_alive(first))
        assert (await ask(guest, lazy, {}))["pid"] != first


async def test_guests_who_come_as_it_stops_get_their_answers(engine_here: Engines, by_id: Model) -> None:
    lazy = msgspec.structs.replace(by_id, idle_seconds=0.05)
    async with engine_here() as one, engine_here() as other:
        for number in range(25):
            for engine in (one, other):
                assert (await ask(engine, lazy, number))["asked"] == number
                await asyncio.sleep(0.05 + number / 500)


async def test_when_an_owner_is_killed_its_program_ends_and_another_takes_over(
    engine_here: Engines, by_id: Model, tmp_path: Path, journal: Path
) -> None:
    run_dir = tmp_path / ("a-long-way-down" * 10) / "run"
    told = msgspec.json.encode([by_id]).decode()
    owner = subprocess.Popen([sys.executable, str(ENGINE_OWNER), str(run_dir), told], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    first = json.loads(await asyncio.to_thread(owner.stdout.readline))["pid"]
    async with engine_here() as guest:
        assert (await ask(guest, by_id, {}))["pid"] == first
        waiting = asyncio.ensure_future(ask(guest, by_id, {"seconds": 60}))
        await ask(guest, by_id, {})
        owner.kill()
        owner.communicate()
        [error] = await at_once(waiting)
        assert isinstance(error, ModelCrashed)
        assert "server process that owned it ended" in error.message
        second = (await ask(guest, by_id, {}))["pid"]
        assert second != first
        await until(lambda: not is_alive(first))


async def test_stderr_is_the_log(engine: SubprocessEngine, by_id: Model, heard: list[str]) -> None:
    await ask(engine, by_id, {})
    assert heard == ["ready"]


async def test_a_program_learns_no_secrets(engine: SubprocessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNOFF_SECRET_KEY", "a secret")
    told = "json.dumps([dict(os.environ), os.listdir('/proc/self/fd')])"
    code = f"import json, os, sys\nfor line in sys.stdin: print({told})"
    environment, held = await ask(engine, program("curious", code), {})
    assert "a secret" not in environment.values()
    assert set(held) <= {"0", "1", "2", "3"}  # the last one is its own look
