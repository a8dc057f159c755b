"""Operating programs: start and stop on request, replacement of programs that hang, and process limits."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.programs import HTTP_MODEL, JSON_LINES_MODEL, alive, is_alive, starts, until
from signoff.core.model import Model, ProcessLimits, Timeouts, model_fault
from signoff.engine import ModelRequest
from signoff.engines.subprocess import SubprocessEngine
from signoff.errors import ModelCrashed, ModelFailed, ModelTimedOut
from support.engines import an_engine
from support.live_server import live
from support.processes import ask as ask_server
from support.processes import first_token, free_port, migrated_environment, served, signoff
from support.sinks import body_of

pytestmark = pytest.mark.anyio

# A program that responds by id and obeys its requests: hang forever, allocate memory, report its limits.
PROGRAM = """
import json, os, resource, sys, threading, time
def work(asked):
    body = asked["body"]
    if "mb" in body:
        body["size"] = len(bytearray(body["mb"] * 2**20))
    body |= {"pid": os.getpid(), "nice": os.nice(0), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
    time.sleep(body.get("seconds", 0))
    print(json.dumps({"id": asked["id"], "body": body}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "hang" in asked["body"]:
        time.sleep(600)
    elif "seconds" in asked["body"]:
        threading.Thread(target=work, args=(asked,), daemon=True).start()
    else:
        work(asked)
"""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SubprocessEngine]:
    """Yield an engine that runs programs."""
    async with an_engine(tmp_path / "run") as engine:
        yield engine


def program_model(**more: Any) -> Model:
    """Return a model that runs PROGRAM."""
    return Model(name="told", kind="subprocess", command=(sys.executable, "-S", "-c", PROGRAM), **more)


async def ask(engine: SubprocessEngine, model: Model, body: Any) -> Any:
    """Send `body` to the model, and return the JSON of its answer."""
    request = ModelRequest(path="/predict", body=json.dumps(body).encode(), target=model.name)
    async with asyncio.timeout(60):
        return json.loads(await body_of(lambda sink: engine.answer(model, request, sink)))


# Start and stop


@pytest.mark.parametrize("serve", [False, True])
async def test_a_model_can_be_started_before_its_first_request_and_stopped_by_any_process(
    serve: bool, tmp_path: Path, journal: Path
) -> None:
    command = (sys.executable, "-S", str(HTTP_MODEL), "--port", "{port}", "--journal", str(journal), "--grandchild")
    lines = (sys.executable, "-S", str(JSON_LINES_MODEL), str(journal))
    model = Model(name="m", kind="subprocess", command=command if serve else lines, serve=serve)
    async with an_engine(tmp_path / "run") as owner, an_engine(tmp_path / "run") as other:
        await owner.start_model(model)
        await until(lambda: starts(journal))  # a JSON-lines program is ready before it has written its journal
        [pids] = starts(journal)
        assert other.process_state(model) == "ready"
        await other.start_model(model)
        assert len(starts(journal)) == 1
        # when an engine that does not own it stops it, all its processes end, and both engines report that
        assert await other.stop_model(model) is True
        await until(lambda: not alive(pids))
        assert [engine.process_state(model) for engine in (owner, other)] == ["stopped", "stopped"]
        # and the next request restarts it
        await ask(other, model, {"any": "thing"})
        assert len(starts(journal)) == 2
        assert await other.stop_model(model) is True
        assert await other.stop_model(model) is True
        await until(lambda: not alive(starts(journal)[-1]))


async def test_a_caller_of_a_model_that_is_stopped_gets_an_error(engine: SubprocessEngine) -> None:
    task = asyncio.ensure_future(ask(engine, program_model(), {"seconds": 60}))
    await until(lambda: engine.process_state(program_model()) == "busy")
    await ask(engine, program_model(), {})
    assert await engine.stop_model(program_model()) is True
    with pytest.raises(ModelFailed, match=r"stopped|ended"):
        await task
    assert (await ask(engine, program_model(), {}))["pid"]


async def test_a_model_that_never_gets_ready_can_be_stopped(engine: SubprocessEngine, journal: Path) -> None:
    command = (sys.executable, "-S", str(HTTP_MODEL), "--port", "{port}", "--journal", str(journal), "--deaf")
    model = Model(name="deaf", kind="subprocess", command=command, serve=True)
    task = asyncio.ensure_future(engine.start_model(model))
    await until(lambda: starts(journal))
    assert await engine.stop_model(model) is True
    with pytest.raises(ModelFailed, match="stopped during its start"):
        await task
    await until(lambda: not alive(starts(journal)[0]))


async def test_operators_start_and_stop_models_over_http(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, token = await server.token("admin"), await server.token()
        command = [sys.executable, "-S", str(JSON_LINES_MODEL)]
        new = {"name": "org/lines", "kind": "subprocess", "command": command, "limits": {"nice": 5}}
        assert (await server.ask("POST", "/api/models", admin, json=new))[1]["limits"]["nice"] == 5
        path = "/api/models/org/lines?operation="
        for operation in ("start", "stop"):
            assert (await server.ask("POST", path + operation, token))[0] == 403
        assert (await server.ask("POST", path + "start", admin))[1]["state"] == "ready"
        _, listed = await server.ask("GET", "/api/models", admin)
        assert [model["state"] for model in listed["data"] if model["name"] == "org/lines"] == ["ready"]
        assert (await server.ask("POST", path + "stop", admin))[1]["state"] == "stopped"
        assert (await server.ask("POST", path + "destroy", admin))[0] == 400
        assert (await server.ask("POST", "/api/models/echo?operation=stop", admin))[0] == 400
        assert (await server.ask("POST", "/api/models/none?operation=stop", admin))[0] == 404
        broken = new | {"name": "broken", "command": ["/nowhere/program"], "limits": {}}
        assert (await server.ask("POST", "/api/models", admin, json=broken))[0] == 201
        status, error = await server.ask("POST", "/api/models/broken?operation=start", admin)
        assert (status, error["code"]) == (502, "model_unreachable")


def test_a_command_stops_a_model_of_a_running_server(tmp_path: Path) -> None:
    environment, port = migrated_environment(tmp_path / "data"), free_port()
    command = shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)])
    with served(environment, tmp_path, port):
        signoff(environment, "model", "add", "m", "--kind", "subprocess", "--command", command)
        token = first_token(tmp_path)
        pid = ask_server(port, "/post/predict?id=m", token, {})["pid"]
        assert signoff(environment, "model", "stop", "m") == "m is stopped.\n"
        assert not is_alive(pid)
        assert ask_server(port, "/post/predict?id=m", token, {})["pid"] != pid


# Hanging


async def test_a_silent_program_that_responds_by_id_is_replaced(tmp_path: Path) -> None:
    model = program_model(timeouts=Timeouts(first_byte_seconds=4, total_seconds=6))
    async with an_engine(tmp_path / "run") as owner, an_engine(tmp_path / "run") as other:
        first = (await ask(owner, model, {}))["pid"]
        # given a caller at another process whose request times out
        with pytest.raises(ModelTimedOut):
            await ask(other, model, {"hang": True})
        # then the process is replaced after its total timeout, even without another request
        await until(lambda: not is_alive(first))
        assert (await ask(other, model, {}))["pid"] != first


async def test_other_callers_of_a_hanging_program_get_an_error(engine: SubprocessEngine) -> None:
    model = program_model(timeouts=Timeouts(total_seconds=5))
    await ask(engine, model, {})
    hanging_task = asyncio.ensure_future(ask(engine, model, {"hang": True}))
    await asyncio.sleep(0.2)
    late_task = asyncio.ensure_future(ask(engine, msgspec.structs.replace(model, timeouts=Timeouts()), {}))
    with pytest.raises(ModelTimedOut):
        await hanging_task
    with pytest.raises(ModelCrashed, match="did not respond"):
        await late_task


async def test_one_missing_answer_does_not_replace_a_program_that_still_answers(engine: SubprocessEngine) -> None:
    model = program_model(timeouts=Timeouts(total_seconds=3))
    first = (await ask(engine, model, {}))["pid"]
    lost_task = asyncio.ensure_future(ask(engine, model, {"seconds": 60}))
    for _ in range(15):
        assert (await ask(engine, model, {"seconds": 0.3}))["pid"] == first
    with pytest.raises(ModelTimedOut):
        await lost_task
    assert (await ask(engine, model, {}))["pid"] == first


# Limits


async def test_a_program_over_its_memory_limit_ends_and_the_error_says_why(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        new = msgspec.to_builtins(program_model(limits=ProcessLimits(memory_mb=200)))
        fields = {name: new[name] for name in ("name", "kind", "command", "limits")}
        assert (await server.ask("POST", "/api/models", admin, json=fields))[0] == 201
        path = "/post/predict?id=told"
        status, first = await server.ask("POST", path, admin, json={"mb": 20})
        assert (status, first["size"]) == (200, 20 * 2**20)
        status, error = await server.ask("POST", path, admin, json={"mb": 500})
        assert (status, "its memory limit is 200 MiB" in error["content"]) == (502, True)
        _, log = await server.ask("GET", "/get/getlogs?id=told", admin)
        assert any(entry["text"] == "MemoryError" for entry in log)
        assert any(entry["level"] == "error" and "200 MiB" in entry["text"] for entry in log)
        status, again = await server.ask("POST", path, admin, json={"mb": 20})
        assert (status, again["pid"] != first["pid"]) == (200, True)


async def test_limits_apply_to_the_program_only_and_other_limits_need_another_process(engine: SubprocessEngine) -> None:
    unlimited = await ask(engine, program_model(), {"mb": 500})
    limited = await ask(engine, program_model(limits=ProcessLimits(open_files=64, nice=7)), {})
    assert (limited["files"], limited["nice"] - unlimited["nice"]) == (64, min(7, 19 - unlimited["nice"]))
    assert unlimited["pid"] != limited["pid"]
    assert os.nice(0) == unlimited["nice"]


@pytest.mark.parametrize(
    "limits", [{"memory_mb": 0}, {"memory_mb": -1}, {"open_files": 3}, {"nice": 20}, {"nice": -1}, {"memory_mb": 2**50}]
)
def test_invalid_process_limits_are_refused(limits: dict[str, int]) -> None:
    assert (model_fault(program_model(limits=ProcessLimits(**limits))) or "").startswith(
        f"`limits.{next(iter(limits))}` must be "
    )
    assert model_fault(program_model(limits=ProcessLimits(memory_mb=64))) is None
    assert model_fault(Model(name="m", kind="echo", limits=ProcessLimits(nice=1))) is not None
