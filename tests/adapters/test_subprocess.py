"""Models that are processes: one process per model and host, shared by all callers, and none left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.programs import ENGINE_OWNER, HTTP_MODEL, alive, is_alive, starts, until
from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines.subprocess import SubprocessEngine
from signoff.errors import BadRequest, ModelCut, ModelUnreachable
from support.engines import an_engine
from support.sinks import body_of

pytestmark = pytest.mark.anyio

JsonObject = dict[str, Any]


Engines = Callable[..., AbstractAsyncContextManager[SubprocessEngine]]


@pytest.fixture
def log_lines() -> list[str]:
    """Return the log lines of this test's models."""
    return []


@pytest.fixture
def engine_here(tmp_path: Path, log_lines: list[str]) -> Engines:
    """Return a factory of engines, one per server process of this host; all share a folder."""
    return partial(an_engine, tmp_path / "run", log_lines)


@pytest.fixture
async def engine(engine_here: Engines) -> AsyncIterator[SubprocessEngine]:
    async with engine_here() as engine:
        yield engine


@pytest.fixture
def model(journal: Path) -> Callable[..., Model]:
    def model(*options: str, name: str = "small", idle_seconds: float = 300, start_seconds: float = 20) -> Model:
        command = (sys.executable, "-S", str(HTTP_MODEL), "--port", "{port}", "--journal", str(journal), *options)
        return Model(
            name=name,
            kind="subprocess",
            serve=True,
            command=command,
            idle_seconds=idle_seconds,
            start_seconds=start_seconds,
        )

    return model


async def ask(engine: SubprocessEngine, model: Model, **body: object) -> JsonObject:
    request = ModelRequest(path="/v1/chat/completions", body=json.dumps(body).encode(), target=model.name)
    return json.loads(await body_of(lambda sink: engine.answer(model, request, sink)))


async def test_a_model_starts_on_its_first_request(
    engine: SubprocessEngine, model: Callable[..., Model], log_lines: list[str]
) -> None:
    small = model("--words", "good morning")
    assert engine.process_state(small) == "stopped"
    answer = await ask(engine, small, question="who are you?")
    assert is_alive(answer["pid"])
    assert engine.process_state(small) == "ready"
    assert log_lines[0] == "good morning"
    await until(lambda: '"question": "who are you?"' in log_lines[-1])


async def test_a_model_finds_its_port_in_its_arguments_and_its_environment(
    engine: SubprocessEngine, model: Callable[..., Model]
) -> None:
    answer = await ask(engine, model())
    port = answer["arguments"][1]
    assert answer["environment"]["PORT"] == answer["environment"]["SIGNOFF_MODEL_PORT"] == port


async def test_a_model_learns_no_secrets(
    engine: SubprocessEngine, model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SIGNOFF_SECRET_KEY", "OPENAI_API_KEY", "PGPASSWORD", "HF_TOKEN", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("LC_TIME", "C")
    environment = (await ask(engine, model()))["environment"]
    assert "a secret" not in environment.values()
    assert [name for name in environment if name.startswith("SIGNOFF_")] == ["SIGNOFF_MODEL_PORT"]
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["LC_TIME"] == "C"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_health_endpoint_is_ready_when_it_responds(
    engine: SubprocessEngine, model: Callable[..., Model], status: int
) -> None:
    assert await ask(engine, model("--health", str(status)))


async def test_a_model_without_a_command_or_a_port_is_refused(
    engine: SubprocessEngine, model: Callable[..., Model]
) -> None:
    with pytest.raises(BadRequest, match="small"):
        await ask(engine, msgspec.structs.replace(model(), command=()))


async def test_concurrent_callers_start_one_process(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    slow = model("--slow", "0.3")
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(ask(engine, slow)) for _ in range(20)]
        await until(lambda: starts(journal))
        assert engine.process_state(slow) == "starting"
    assert len({call.result()["pid"] for call in calls}) == len(starts(journal)) == 1


async def test_a_first_caller_who_leaves_does_not_stop_the_start(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    slow = model("--slow", "0.3")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(engine, slow))
        second = group.create_task(ask(engine, slow))
        await until(lambda: starts(journal))
        first.cancel()
    assert second.result()["pid"] == starts(journal)[0][0]
    assert len(starts(journal)) == 1


async def test_a_start_goes_on_when_all_callers_have_left(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    slow = model("--slow", "0.3")
    first = asyncio.ensure_future(ask(engine, slow))
    await until(lambda: starts(journal))
    first.cancel()
    await until(lambda: engine.process_state(slow) == "ready")
    assert [[(await ask(engine, slow))["pid"]]] == starts(journal)


async def test_engines_on_one_host_share_a_process(
    engine_here: Engines, model: Callable[..., Model], journal: Path
) -> None:
    slow = model("--slow", "0.3")
    async with engine_here() as first, engine_here() as second, asyncio.TaskGroup() as group:
        calls = [group.create_task(ask(engine, slow)) for engine in (first, second, first, second)]
    assert len({call.result()["pid"] for call in calls}) == len(starts(journal)) == 1


async def test_another_engine_takes_over_from_an_owner_that_closes(
    engine_here: Engines, model: Callable[..., Model]
) -> None:
    async with engine_here() as guest:
        async with engine_here() as owner:
            first = (await ask(owner, model()))["pid"]
            assert (await ask(guest, model()))["pid"] == first
        second = (await ask(guest, model()))["pid"]
        assert second != first
        assert alive([first, second]) == [second]


async def test_when_an_owner_is_killed_its_models_end_and_another_engine_takes_over(
    engine: SubprocessEngine, model: Callable[..., Model], tmp_path: Path, journal: Path
) -> None:
    models = [model("--grandchild"), model("--grandchild", "--stubborn", name="another")]
    models_json = msgspec.json.encode(models).decode()
    owner = subprocess.Popen(
        [sys.executable, str(ENGINE_OWNER), str(tmp_path / "run"), models_json], stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    owned = [json.loads(await asyncio.to_thread(owner.stdout.readline))["pid"] for _ in models]
    pids = [pid for pids in starts(journal) for pid in pids]
    assert [(await ask(engine, model))["pid"] for model in models] == owned
    owner.kill()
    owner.communicate()
    answers = [(await ask(engine, model))["pid"] for model in models]
    assert not set(answers) & set(pids)
    await until(lambda: not alive(pids))


async def test_an_idle_model_stops_and_starts_again(engine: SubprocessEngine, model: Callable[..., Model]) -> None:
    lazy = model(idle_seconds=0.2)
    first = (await ask(engine, lazy))["pid"]
    await until(lambda: engine.process_state(lazy) == "stopped" and not is_alive(first))
    assert (await ask(engine, lazy))["pid"] != first


async def test_a_call_in_flight_counts_as_use(engine: SubprocessEngine, model: Callable[..., Model]) -> None:
    lazy = model(idle_seconds=0.1)
    first = (await ask(engine, lazy, seconds=1))["pid"]
    assert is_alive(first)


async def test_a_guests_call_counts_as_use_too(
    engine_here: Engines, model: Callable[..., Model], journal: Path
) -> None:
    lazy = model(idle_seconds=4)
    async with engine_here() as owner, engine_here() as guest:
        owner_call = asyncio.ensure_future(ask(owner, lazy, seconds=1))
        await until(lambda: starts(journal))
        guest_answer = await ask(guest, lazy, seconds=6)
        first = (await owner_call)["pid"]
        assert guest_answer["pid"] == first
        await until(lambda: not is_alive(first))
    assert len(starts(journal)) == 1


async def test_the_error_of_a_model_that_exits_at_its_start_has_its_last_output(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    weak = model("--crash", "7", "--words", "no weights in the bag")
    with pytest.raises(ModelUnreachable, match=r"small ended with status 7 .*\nno weights in the bag") as raised:
        await ask(engine, weak)
    assert raised.value.retryable
    assert engine.process_state(weak) == "failed"
    assert len(starts(journal)) == 1


async def test_a_missing_program_is_named_in_the_error(engine: SubprocessEngine, model: Callable[..., Model]) -> None:
    lost = msgspec.structs.replace(model(), command=("/there/is/no/model", "{port}"))
    with pytest.raises(ModelUnreachable, match=r"cannot run /there/is/no/model.*No such file"):
        await ask(engine, lost)


async def test_output_to_dev_stderr_is_logged(engine: SubprocessEngine, model: Callable[..., Model]) -> None:
    writer = msgspec.structs.replace(model(), command=("sh", "-c", "echo by its name > /dev/stderr; exit 4"))
    with pytest.raises(ModelUnreachable, match=r"status 4 .*\nby its name"):
        await ask(engine, writer)


async def test_a_model_that_is_not_ready_in_time_is_stopped(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    with pytest.raises(ModelUnreachable, match=r"not ready within 3 s.*\nwait for me"):
        await ask(engine, model("--deaf", "--words", "wait for me", start_seconds=3))
    await until(lambda: not alive(starts(journal)[0]))


async def test_a_crash_fails_the_waiting_call_and_the_next_call_restarts_the_model(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    small = model("--grandchild")
    first = (await ask(engine, small))["pid"]
    began = time.monotonic()
    with pytest.raises((ModelCut, ModelUnreachable)):
        await ask(engine, small, crash=True)
    await until(lambda: not Path(f"/proc/{first}").exists() and engine.process_state(small) != "ready")
    await ask(engine, small)
    assert time.monotonic() - began >= 0.3  # the restart waits for the backoff
    assert len(starts(journal)) == 2
    await until(lambda: not alive(starts(journal)[0]))


async def test_the_backoff_of_a_model_that_keeps_crashing_grows(
    engine: SubprocessEngine, model: Callable[..., Model], tmp_path: Path, journal: Path
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    fragile = model("--broken", str(broken), start_seconds=1.5)
    messages = set[str]()
    while not any("keeps failing. Retry in " in message for message in messages):
        with pytest.raises(ModelUnreachable) as raised:
            await ask(engine, fragile)
        messages.add(raised.value.message)
        await asyncio.sleep(0.01)
    assert len(starts(journal)) == 3
    broken.unlink()
    assert await ask(engine, msgspec.structs.replace(fragile, start_seconds=60))


async def test_a_healthy_minute_resets_the_backoff(
    engine_here: Engines, model: Callable[..., Model], tmp_path: Path, journal: Path
) -> None:
    broken, passed_seconds = tmp_path / "broken", [0.0]
    broken.touch()
    fragile = model("--broken", str(broken))
    async with engine_here(monotonic=lambda: time.monotonic() + sum(passed_seconds)) as engine:
        for _ in range(2):
            with pytest.raises(ModelUnreachable, match="ended with status 1"):
                await ask(engine, fragile)
        broken.unlink()
        first = (await ask(engine, fragile))["pid"]
        passed_seconds.append(61)
        with pytest.raises((ModelCut, ModelUnreachable)):
            await ask(engine, fragile, crash=True)
        await until(lambda: not Path(f"/proc/{first}").exists() and engine.process_state(fragile) != "ready")
        with pytest.raises(ModelUnreachable, match=r"Retry in 0\.[1-5] s"):
            await ask(engine, msgspec.structs.replace(fragile, start_seconds=0.05))


async def test_a_model_whose_port_was_taken_gets_another(
    engine: SubprocessEngine, model: Callable[..., Model], tmp_path: Path, journal: Path
) -> None:
    robbed = tmp_path / "robbed"
    robbed.touch()
    assert await ask(engine, model("--robbed", str(robbed)))
    [[_, thief], [_]] = starts(journal)
    os.kill(thief, signal.SIGKILL)


async def test_a_command_that_the_system_refuses_is_an_error(
    engine: SubprocessEngine, model: Callable[..., Model]
) -> None:
    with pytest.raises(ModelUnreachable, match="cannot be started"):
        await ask(engine, msgspec.structs.replace(model(), command=("true", "x" * 10_000_000)))


async def test_a_watchdog_inherits_no_descriptors_of_other_models(
    engine: SubprocessEngine, model: Callable[..., Model]
) -> None:
    # An inherited pipe of another model would keep that model alive.
    for name in ("one", "two", "three"):
        watchdog = parent((await ask(engine, model(name=name)))["pid"])
        descriptors = sorted(path.name for path in Path(f"/proc/{watchdog}/fd").iterdir())
        assert descriptors == ["0", "1", "2", "3", "4"]  # 3 and 4 are its own wake-up pipe


async def test_an_edited_model_is_a_new_process(
    engine: SubprocessEngine, model: Callable[..., Model], log_lines: list[str]
) -> None:
    first = (await ask(engine, model("--words", "old")))["pid"]
    second = (await ask(engine, model("--words", "new")))["pid"]
    assert second != first
    await until(lambda: not is_alive(first))
    assert is_alive(second)
    assert [line for line in log_lines if line in {"old", "new"}] == ["old", "new"]


async def test_models_with_names_that_look_alike_are_kept_apart(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    for name in ("a/b", "a-b", "A/B", "..", "ä" * 300):
        await ask(engine, model(name=name))
    assert len(starts(journal)) == 5


async def test_a_close_leaves_no_process(engine_here: Engines, model: Callable[..., Model], journal: Path) -> None:
    async with engine_here() as engine:
        await ask(engine, model("--grandchild"))
        starting = asyncio.ensure_future(ask(engine, model("--slow", "60", "--stubborn", "--grandchild", name="slow")))
        await until(lambda: len(starts(journal)) == 2)
    with pytest.raises(ModelUnreachable):
        await starting
    with pytest.raises(ModelUnreachable):
        await ask(engine, model())
    pids = [pid for pids in starts(journal) for pid in pids]
    assert len(pids) == 4
    await until(lambda: not alive(pids))


async def test_a_close_fails_waiting_callers(engine_here: Engines, model: Callable[..., Model], journal: Path) -> None:
    async with engine_here() as engine:
        waiting = asyncio.ensure_future(ask(engine, model("--slow", "60")))
        await until(lambda: starts(journal))
    with pytest.raises(ModelUnreachable, match="stopped"):
        await waiting


async def test_a_model_ends_when_its_watchdog_is_killed(
    engine: SubprocessEngine, model: Callable[..., Model], journal: Path
) -> None:
    first = (await ask(engine, model("--grandchild")))["pid"]
    os.kill(parent(first), signal.SIGKILL)
    await until(lambda: not alive(starts(journal)[0]) and engine.process_state(model("--grandchild")) != "ready")
    assert (await ask(engine, model("--grandchild")))["pid"] != first


def parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


async def test_a_talkative_model_is_never_blocked_and_its_lines_are_bounded(
    engine: SubprocessEngine, model: Callable[..., Model], log_lines: list[str]
) -> None:
    for number in range(30):
        await ask(engine, model(), number=number, text="x" * 100_000)
    assert max(map(len, log_lines)) == 8192
