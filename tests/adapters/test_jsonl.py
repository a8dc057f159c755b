"""Models that are programs which speak JSON lines: each caller gets its own answer, or a clear error."""

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
from signoff.core.dialects.answer import collect
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
from support.sinks import body_of, events_of

pytestmark = pytest.mark.anyio

Engines = Callable[..., AbstractAsyncContextManager[SubprocessEngine]]


@pytest.fixture
def log_lines() -> list[str]:
    """Return the log lines of this test's models."""
    return []


@pytest.fixture
def engine_here(tmp_path: Path, log_lines: list[str]) -> Engines:
    """Return a factory of engines, one per server process of this host; all share a folder, whose name is long."""
    return partial(an_engine, tmp_path / ("a-long-way-down" * 10) / "run", log_lines)


@pytest.fixture
async def engine(engine_here: Engines) -> AsyncIterator[SubprocessEngine]:
    async with engine_here() as engine:
        yield engine


@pytest.fixture
def by_id(journal: Path) -> Model:
    """Return a model that answers concurrent requests by their ids."""
    command = (sys.executable, "-S", str(JSON_LINES_MODEL), str(journal))
    return Model(name="by id", kind="subprocess", command=command)


@pytest.fixture
def plain() -> Model:
    """Return a model whose program does not use ids."""
    return Model(name="plain", kind="subprocess", command=(sys.executable, "-S", str(PLAIN_LINES_MODEL)))


def program(name: str, code: str, **more: Any) -> Model:
    return Model(name=name, kind="subprocess", command=(sys.executable, "-S", "-c", code), **more)


def request_of(model: Model, body: Any, **more: Any) -> ModelRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ModelRequest(**({"path": "/predict", "body": raw, "target": model.name} | more))


async def stream(engine: SubprocessEngine, model: Model, body: Any) -> list[bytes]:
    request = request_of(model, body, stream=True)
    async with asyncio.timeout(60):
        return await events_of(lambda sink: engine.answer(model, request, sink))


async def ask(engine: SubprocessEngine, model: Model, body: Any, **more: Any) -> Any:
    request = request_of(model, body, **more)
    async with asyncio.timeout(60):
        return json.loads(await body_of(lambda sink: engine.answer(model, request, sink)))


async def run_all(*calls: Any) -> list[Any]:
    """Run all calls at once, and return their results; a model's error is a result too."""

    async def outcome(call: Any) -> Any:
        try:
            return await call
        except ModelFailed as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(call)) for call in calls]
    return [task.result() for task in tasks]


# Answers


async def test_answers_are_matched_by_id_in_any_order(engine: SubprocessEngine, by_id: Model) -> None:
    bodies = [{"number": number, "seconds": (50 - number) / 50} for number in range(50)]
    ended = list[int]()

    async def ask_and_record(body: dict[str, Any]) -> Any:
        answer = await ask(engine, by_id, body)
        ended.append(body["number"])
        return answer

    answers = await run_all(*(ask_and_record(body) for body in bodies))
    assert [answer["asked"] for answer in answers] == bodies
    assert len({answer["pid"] for answer in answers}) == 1
    assert ended.index(49) < ended.index(0)  # the request that takes longest was sent first


async def test_a_program_without_ids_answers_in_order(engine: SubprocessEngine, plain: Model) -> None:
    answers = await run_all(*(ask(engine, plain, number) for number in range(500)))
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


async def test_a_body_with_line_breaks_is_sent_as_one_line(
    engine: SubprocessEngine, by_id: Model, plain: Model
) -> None:
    body = b'{"a":\n\r\n 1,\r"b":\n[2]\n}\n'
    assert (await ask(engine, by_id, body))["asked"] == {"a": 1, "b": [2]}
    assert (await ask(engine, plain, body))["of"] == {"a": 1, "b": [2]}


async def test_a_request_names_its_operation(engine: SubprocessEngine, by_id: Model) -> None:
    assert (await ask(engine, by_id, {}))["operation"] == "predict"
    assert (await ask(engine, by_id, {}, path="/v1/chat/completions"))["operation"] == "chat/completions"


async def test_any_program_works_and_python_needs_no_flush(engine: SubprocessEngine) -> None:
    for command in (("cat",), ("sh", "-c", 'while read -r line; do echo "$line"; done'), ("sed", "-u", "s/1/1/")):
        model = Model(name=command[0], kind="subprocess", command=command)
        assert await ask(engine, model, {"number": 1}) == {"number": 1}
    unflushed = program("unflushed", "import sys\nfor line in sys.stdin: print('[1]')")
    assert await ask(engine, unflushed, {}) == [1]


async def test_an_unknown_id_in_an_answer_is_part_of_the_answer(engine: SubprocessEngine) -> None:
    model = program("own", 'import sys\nfor line in sys.stdin: print(\'{"id": "1", "body": 2}\')')
    assert await ask(engine, model, {}) == {"id": "1", "body": 2}


async def test_pieces_are_the_events_of_a_stream(engine: SubprocessEngine, by_id: Model) -> None:
    events = await stream(engine, by_id, {"pieces": ["Hel", "lo"]})
    assert events[-1] == b"data: [DONE]\n\n"
    completion = json.loads(collect(events).body)
    assert completion["choices"] == [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
    ]
    assert await ask(engine, by_id, {"pieces": ["Hel", "lo"]}) == "Hello"
    assert await ask(engine, by_id, {"pieces": [{"a": 1}, 2]}) == [{"a": 1}, 2]
    [first, *_] = await stream(engine, by_id, {"pieces": [{"a": 1}]})
    assert first == b'data: {"a": 1}\n\n'


async def test_a_programs_own_error_keeps_its_status(engine: SubprocessEngine, by_id: Model) -> None:
    with pytest.raises(ModelAnswered, match="too long") as raised:
        await ask(engine, by_id, {"error": {"message": "too long", "status": 422}})
    assert raised.value.status == 422
    for error in ("I cannot", {"message": "I cannot"}, {"message": "I cannot", "status": 200}):
        with pytest.raises(ModelFailed, match="I cannot") as raised:
            await ask(engine, by_id, {"error": error})
        assert (raised.value.status, raised.value.retryable) == (502, False)
    with pytest.raises(ModelFailed) as raised:
        await ask(engine, by_id, {"error": 'caf\u00e9 "x"\n'})
    assert raised.value.message == 'caf\u00e9 "x"\n'
    for invalid_error in (17, [], {}, True, {"message": ["x"], "status": "y"}):
        with pytest.raises(ModelFailed):
            await ask(engine, by_id, {"error": invalid_error})


async def test_a_failure_to_open_a_pipe_leaves_no_open_descriptors(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes, pipe = list[tuple[int, int]](), os.pipe

    def limited_pipe() -> tuple[int, int]:
        if len(pipes) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        pipes.append(pipe())
        return pipes[-1]

    monkeypatch.setattr(os, "pipe", limited_pipe)
    with pytest.raises(OSError, match="Too many"):
        async with start_jsonl(plain, ModelLog(print)):
            pass
    await asyncio.sleep(0)  # this process closes its own ends in the next iteration of the loop
    for end in (end for ends in pipes for end in ends):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


# Invalid output


async def test_a_line_that_is_not_json_fails_all_callers_of_a_program_without_ids(
    engine: SubprocessEngine, plain: Model
) -> None:
    # Answers are matched by their order alone, so after an invalid line they could go to the wrong callers.
    results = await run_all(ask(engine, plain, {"says": "not json", "seconds": 0.2}), ask(engine, plain, 1))
    assert all(isinstance(error, ModelGarbled) and "not json" in error.message for error in results)
    assert (await ask(engine, plain, 2))["of"] == 2


async def test_an_unexpected_line_ends_a_program_without_ids(engine: SubprocessEngine) -> None:
    # The next line would be taken for the answer to another request.
    code = "import sys, time\nfor line in sys.stdin:\n print('1'); time.sleep(.2); print('2')"
    twice = program("twice", code)
    assert await ask(engine, twice, {}) == 1
    await until(lambda: engine.process_state(twice) in {"stopped", "failed"})
    assert await ask(engine, twice, {}) == 1


async def test_unrelated_lines_of_a_program_with_ids_are_ignored(engine: SubprocessEngine, by_id: Model) -> None:
    await ask(engine, by_id, {})
    for noise in ("", "Loading 12 %", "{", "[1]", '{"id": "nobody", "body": 1}', '{"id": 7}', "\x00", "[" * 100_000):
        assert (await ask(engine, by_id, {"noise": noise}))["asked"] == {"noise": noise}


async def test_a_line_has_a_maximum_length(engine: SubprocessEngine, by_id: Model) -> None:
    assert len(await ask(engine, by_id, {"size": 1_000_000})) == 1_000_000
    with pytest.raises(ModelGarbled, match="a line of more than"):
        await ask(engine, by_id, {"size": jsonl.MAX_LINE_BYTES})
    assert await ask(engine, by_id, {})


async def test_a_program_that_does_not_answer_times_out(engine: SubprocessEngine, by_id: Model, plain: Model) -> None:
    quick = Timeouts(first_byte_seconds=0.5)
    await ask(engine, by_id, {})
    with pytest.raises(ModelTimedOut, match=r"0\.5 s"):
        await ask(engine, msgspec.structs.replace(by_id, timeouts=quick), {"seconds": 5})
    assert engine.process_state(by_id) == "ready"
    # A stuck program without ids cannot answer anybody else, so it is restarted.
    with pytest.raises(ModelTimedOut):
        await ask(engine, msgspec.structs.replace(plain, timeouts=quick), {"seconds": 60})
    assert (await ask(engine, plain, 1))["of"] == 1
    # The same applies if the first caller has left.
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await ask(engine, plain, {"seconds": 60})
    with pytest.raises(ModelTimedOut):
        await ask(engine, msgspec.structs.replace(plain, timeouts=quick), 1)
    assert (await ask(engine, plain, 2))["of"] == 2


async def test_input_that_a_program_does_not_read_is_bounded(engine: SubprocessEngine) -> None:
    deaf = program("deaf", "import time; time.sleep(600)")
    first = asyncio.ensure_future(ask(engine, deaf, "x" * 1_000_000))

    def buffered_bytes() -> int:
        instance = engine._processes["deaf"]._instance if "deaf" in engine._processes else None
        lines = instance and instance.process and instance.process.lines
        return lines._writer.transport.get_write_buffer_size() if lines else 0

    await until(lambda: buffered_bytes() > 500_000)
    first.cancel()
    for _ in range(4):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await ask(engine, deaf, "x" * 1_000_000)
    assert 500_000 < buffered_bytes() < 1_500_000


async def test_callers_that_wait_behind_a_slow_answer_do_not_end_the_program(
    engine: SubprocessEngine, plain: Model
) -> None:
    quick = msgspec.structs.replace(plain, timeouts=Timeouts(first_byte_seconds=3))
    await ask(engine, quick, 0)
    results = await run_all(*(ask(engine, quick, {"seconds": 0.8, "number": number}) for number in range(5)))
    assert results[0]["of"]["number"] == 0
    assert isinstance(results[-1], ModelTimedOut)
    assert engine.process_state(plain) == "ready"


async def test_a_caller_who_leaves_does_not_affect_the_answers_of_others(
    engine: SubprocessEngine, plain: Model
) -> None:
    async def impatient(number: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1 + number / 100):
                await ask(engine, plain, {"seconds": 0.05, "number": number})

    await run_all(*(impatient(number) for number in range(10)))
    assert (await ask(engine, plain, "mine"))["of"] == "mine"


async def test_requests_beyond_the_waiting_limit_are_refused(
    engine: SubprocessEngine, by_id: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_WAITING", 3)
    await ask(engine, by_id, {})
    waiting = [asyncio.ensure_future(ask(engine, by_id, {"seconds": 1})) for _ in range(3)]
    await until(lambda: engine.process_state(by_id) == "busy")
    with pytest.raises(Overloaded, match="3 requests already wait"):
        await ask(engine, by_id, {})
    assert len([await call for call in waiting]) == 3


# The end of a program


async def test_a_crash_fails_all_waiting_callers_and_the_next_call_restarts_the_program(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    async with engine_here() as owner, engine_here() as guest:
        first = (await ask(owner, by_id, {}))["pid"]
        assert (await ask(guest, by_id, {}))["pid"] == first
        waiting = [asyncio.ensure_future(ask(engine, by_id, {"seconds": 60})) for engine in [owner, guest] * 10]
        await until(lambda: owner.process_state(by_id) == "busy")
        await ask(guest, by_id, {})
        os.kill(first, signal.SIGKILL)
        for error in await run_all(*waiting):
            assert isinstance(error, ModelCrashed)
            assert "by id ended with status 137 before it answered" in error.message
        second = [(await ask(engine, by_id, {}))["pid"] for engine in (guest, owner)]
    assert second[0] == second[1] != first
    assert len(starts(journal)) == 2


async def test_a_missing_program_is_named_in_the_error(engine: SubprocessEngine) -> None:
    with pytest.raises(ModelFailed, match=r"cannot run /there/is/no/model.*No such file"):
        await ask(engine, Model(name="lost", kind="subprocess", command=("/there/is/no/model",)), {})


async def test_a_close_fails_waiting_callers_and_leaves_no_process(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    async with engine_here() as guest:
        async with engine_here() as owner:
            await ask(owner, by_id, {})
            waiting = [asyncio.ensure_future(ask(engine, by_id, {"seconds": 60})) for engine in (owner, guest)]
            await ask(guest, by_id, {})
            await until(lambda: owner.process_state(by_id) == "busy")
        for error in await run_all(*waiting):
            assert isinstance(error, ModelCrashed | ModelUnreachable)
        await until(lambda: not alive(starts(journal)[0]))
        assert (await ask(guest, by_id, {}))["asked"] == {}
    assert len(starts(journal)) == 2


async def test_a_program_stops_when_idle_and_a_guests_call_counts_as_use(
    engine_here: Engines, by_id: Model, journal: Path
) -> None:
    lazy = msgspec.structs.replace(by_id, idle_seconds=4)
    async with engine_here() as owner, engine_here() as guest:
        owner_call = asyncio.ensure_future(ask(owner, lazy, {"seconds": 1}))
        await until(lambda: starts(journal))
        guest_answer = await ask(guest, lazy, {"seconds": 6})
        first = (await owner_call)["pid"]
        assert guest_answer["pid"] == first
        await until(lambda: not is_alive(first))
        assert (await ask(guest, lazy, {}))["pid"] != first


async def test_guests_that_call_while_a_program_stops_get_their_answers(engine_here: Engines, by_id: Model) -> None:
    lazy = msgspec.structs.replace(by_id, idle_seconds=0.05)
    async with engine_here() as first, engine_here() as second:
        for number in range(25):
            for engine in (first, second):
                assert (await ask(engine, lazy, number))["asked"] == number
                await asyncio.sleep(0.05 + number / 500)


async def test_when_an_owner_is_killed_its_program_ends_and_another_engine_takes_over(
    engine_here: Engines, by_id: Model, tmp_path: Path, journal: Path
) -> None:
    run_dir = tmp_path / ("a-long-way-down" * 10) / "run"
    models = msgspec.json.encode([by_id]).decode()
    owner = subprocess.Popen([sys.executable, str(ENGINE_OWNER), str(run_dir), models], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    first = json.loads(await asyncio.to_thread(owner.stdout.readline))["pid"]
    async with engine_here() as guest:
        assert (await ask(guest, by_id, {}))["pid"] == first
        waiting = asyncio.ensure_future(ask(guest, by_id, {"seconds": 60}))
        await ask(guest, by_id, {})
        owner.kill()
        owner.communicate()
        [error] = await run_all(waiting)
        assert isinstance(error, ModelCrashed)
        assert "server process that owned it ended" in error.message
        second = (await ask(guest, by_id, {}))["pid"]
        assert second != first
        await until(lambda: not is_alive(first))


async def test_stderr_is_the_log(engine: SubprocessEngine, by_id: Model, log_lines: list[str]) -> None:
    await ask(engine, by_id, {})
    assert log_lines == ["ready"]


async def test_a_program_learns_no_secrets(engine: SubprocessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNOFF_SECRET_KEY", "a secret")
    expression = "json.dumps([dict(os.environ), os.listdir('/proc/self/fd')])"
    code = f"import json, os, sys\nfor line in sys.stdin: print({expression})"
    environment, descriptors = await ask(engine, program("curious", code), {})
    assert "a secret" not in environment.values()
    assert set(descriptors) <= {"0", "1", "2", "3"}  # one of them is the folder that `listdir` reads


class _ClosedWriter:
    """A writer of which uvloop has closed the transport, as the program has closed its input."""

    async def drain(self) -> None:
        raise RuntimeError("unable to perform operation on <WriteUnixTransport closed=True>; the handler is closed")

    def write(self, line: bytes) -> None:
        raise RuntimeError("unable to perform operation on <WriteUnixTransport closed=True>; the handler is closed")


async def test_a_request_that_finds_the_input_closed_was_not_delivered() -> None:
    stops = list[bool]()
    writer: Any = _ClosedWriter()
    client = jsonl.JsonLinesClient(
        "m", asyncio.StreamReader(), writer, prefix="p", disconnect=lambda: stops.append(True)
    )
    async with aclosing(client.ask("POST", b"{}", Timeouts())) as messages:
        with pytest.raises(jsonl.NotDelivered, match="closed its input"):
            await anext(messages)
    assert stops == [True]
    assert jsonl.NotDelivered.retryable


class _Answering:
    """A writer to a program that answers each request with fixed lines, with `ID` for the id of the request."""

    def __init__(self, reader: asyncio.StreamReader, lines: str) -> None:
        self._reader = reader
        self._lines = lines

    async def drain(self) -> None:
        pass

    def write(self, line: bytes) -> None:
        request_id: str = json.loads(line)["id"]
        self._reader.feed_data(self._lines.replace("ID", request_id).encode() + b"\n")


async def test_an_answer_that_ends_too_late_is_not_said_to_be_missing() -> None:
    reader = asyncio.StreamReader()
    writer: Any = _Answering(reader, '{"id": "ID", "delta": "a"}')
    client = jsonl.JsonLinesClient("m", reader, writer, prefix="p", disconnect=lambda: None)
    reading = asyncio.ensure_future(client.read_responses())
    async with aclosing(client.ask("POST", b"{}", Timeouts(total_seconds=0.1))) as messages:
        assert (await anext(messages)).kind == "delta"
        with pytest.raises(ModelTimedOut, match=r"took more than 0\.1 s"):
            await anext(messages)
    reading.cancel()


async def messages_of(lines: str) -> list[tuple[str, str]]:
    """Return kind and JSON of the messages of the answer that `lines` are."""
    reader = asyncio.StreamReader()
    writer: Any = _Answering(reader, lines)
    client = jsonl.JsonLinesClient("m", reader, writer, prefix="p", disconnect=lambda: None)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(client.read_responses())
        async with aclosing(client.ask("POST", b"{}", Timeouts())) as messages:
            received = [(message.kind, message.raw.decode()) async for message in messages]
        reading.cancel()
    return received


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"id": "ID", "double": 4}', [("body", '{"double":4}')]),
        ('{"double": 4, "more": {"a": null}, "id": "ID"}', [("body", '{"double":4,"more":{"a": null}}')]),
        ('{"id": "ID", "error": null, "result": [1]}', [("body", '{"result":[1]}')]),
        ('{"id": "ID", "result": null}', [("body", '{"result":null}')]),
        ('{"id": "ID", "body": null}', [("body", "null")]),
        ('{"id": "ID", "body": null, "result": 1}', [("body", "null")]),
        ('{"id": "ID", "delta": "a"}\n{"id": "ID", "done": true}', [("delta", '"a"'), ("body", "null")]),
        ('{"id": "ID", "delta": "a"}\n{"id": "ID"}', [("delta", '"a"'), ("body", "null")]),
        ('{"id": "ID", "delta": "a", "body": null}', [("delta", '"a"'), ("body", "null")]),
        ('{"id": "ID", "delta": null, "text": "a"}', [("body", '{"text":"a"}')]),
        ('{"id": "ID", "error": "No."}', [("error", '"No."')]),
        ('{"id": "ID", "error": {"message": "No."}, "result": 1}', [("error", '{"message": "No."}')]),
    ],
)
async def test_a_line_with_an_id_and_no_body_is_the_answer(lines: str, expected: list[tuple[str, str]]) -> None:
    assert await messages_of(lines) == expected


@pytest.mark.parametrize("line", ['{"id": "ID"}', '{"id": "ID", "error": null}', '{"id": "ID", "delta": null}'])
async def test_a_line_with_an_id_alone_is_a_failure_of_the_model(line: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ModelGarbled, match="nothing else")):
        await messages_of(line)
