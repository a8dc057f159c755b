"""Registered functions: their arguments and results, and the containment of those that raise or hang."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.pipelines.check import bind_arguments
from signoff.core.pipelines.coerce import coerce, to_text
from signoff.core.pipelines.grammar import parse
from signoff.core.pipelines.tree import Call, Constant, Name
from signoff.errors import FunctionFailed, FunctionTimedOut, Overloaded, SignoffError
from signoff.funcs import builtins
from signoff.funcs.loading import scan
from signoff.runtime import functions as functions_module
from signoff.runtime.functions import FunctionRegistry
from signoff.runtime.threads import WorkerThreads
from support.pipeline_cases import PIPELINES
from support.stores import AStore, opened, together

pytestmark = pytest.mark.anyio
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class FunctionServer:
    """The function registry of one server on a store, with a folder of function files."""

    def __init__(self, store: AStore, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.store = store
        options: dict[str, Any] = {"seconds": 60, "clock": lambda: 0} | changes
        self.functions = FunctionRegistry(store.library, [folder], **options)

    async def register(self, source: str = "", name: str = "custom_test.py") -> None:
        """Write `source` to a file, and register its functions and the built-in ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(source)
        scanned = await self.functions.scan()
        await self.store.library.sync([ready.function for ready in scanned.ready.values()], scanned.unread)
        self.functions.invalidate()

    async def call(self, name: str, *values: object, **named: object) -> str:
        function = (await self.functions.registered())[name]
        args = dict(zip([param.name for param in function.params], values, strict=False)) | named
        return await self.functions.call(function, args, self.prompts)

    async def prompts(self) -> list[str]:
        return ["greet", "part"]

    @contextlib.contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """Limit calls to `seconds` within the block, but not the reading of files before it, which load may delay."""
        before, self.functions._seconds = self.functions._seconds, seconds
        yield
        self.functions._seconds = before


@contextlib.asynccontextmanager
async def function_server(tmp_path: Path, source: str = "", **changes: Any) -> AsyncIterator[FunctionServer]:
    """Yield a server on which the built-in functions and those in `source` are registered."""
    async with opened(f"memory:{tmp_path}") as store:
        server = FunctionServer(store, tmp_path / "functions", **changes)
        await server.register(source)
        yield server


async def evaluate(here: FunctionServer, value: Any, args: dict[str, Any]) -> Any:
    """Return the value of a tree that calls only functions."""
    match value:
        case Constant(literal):
            return literal
        case Name(name):
            return args[name]
        case Call():
            function = (await here.functions.registered())[value.name]
            arguments = {
                name: await evaluate(here, argument, args) for name, argument in bind_arguments(value, function).items()
            }
            return await here.functions.call(function, arguments, here.prompts)


# Results


@pytest.mark.parametrize("case", PIPELINES["builtins"], ids=lambda case: case["pipeline"])
async def test_a_pipeline_of_builtins_returns_the_expected_result(case: dict[str, Any], tmp_path: Path) -> None:
    async with function_server(tmp_path) as here:
        run = evaluate(here, parse(case["pipeline"]), case["args"])
        if "error" in case:
            with pytest.raises(FunctionFailed, match=r"`divide` failed: division by zero"):
                await run
        else:
            assert await run == case["response"]


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("length", ["[1, [2, 3]]"], "2"),
        ("length", [{"a": 1}], "1"),
        ("length", ["[no json"], "8"),
        ("length", ["é😀"], "2"),
        ("to_str", [[1, "é", None]], '[1, "é", null]'),
        ("to_str", [True], "true"),
        ("identity", ['{"a": 1}'], '{"a": 1}'),
        ("identity", [" 007 "], " 007 "),
        ("concat", [None, 2.0], "null2.0"),
        ("append", ["[]", '{"a": [1]}'], '[{"a": [1]}]'),
        ("append", ["[]", "no json"], '["no json"]'),
        ("remove", ["[1, 2, 1]", 1], "[2, 1]"),
        ("sort", ["[3, 1, 2]"], "[1, 2, 3]"),
        ("add", ["9007199254740993", 1], "9007199254740994"),
        ("add", [".5", "1e1"], "10.5"),
        ("multiply", ["9" * 2150, "-" + "9" * 2150], str(int("9" * 2150) * -int("9" * 2150))),
        ("sort", [[[2, 1], [1, 2], [1], []]], "[[], [1], [1, 2], [2, 1]]"),
        ("map", ["length", ["a", "bb"]], "[1, 2]"),
        ("reduce", ["concat", ["a", "b", "c"]], "abc"),
        ("reduce", ["add", [], 0], "0"),
        ("reduce", ["add", []], "null"),
        ("get_prompts", [], '["greet", "part"]'),
        ("now", [], "1970-01-01T00:00:00.000000Z"),
    ],
)
async def test_a_builtin_reads_and_returns_json(name: str, values: list[Any], text: str, tmp_path: Path) -> None:
    async with function_server(tmp_path) as here:
        assert await here.call(name, *values) == text


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("add", ["a", 1], "'a' is not a number"),
        ("add", [True, 1], "True is not a number"),
        ("multiply", ["ab", 1_000_000_000], "'ab' is not a number"),
        ("multiply", [[1], 1_000_000_000], "is not a number"),
        ("remove", ["[1]", 2], "2 is not in list"),
        ("sort", ['[1, "a"]'], "not supported"),
        ("sort", ["abc"], "lst: abc is not a list"),
        ("map", ["nobody", [1]], "there is no function 'nobody'"),
        ("map", ["divide", [1]], "missing a required argument"),
        ("map", ["__import__", ["os"]], "there is no function '__import__'"),
        ("multiply", [1e308, 10], "cannot be JSON"),
        ("multiply", ["9" * 2150, "9" * 2151], "a whole number may have at most 4300 digits"),
        ("add", ["9" * 4300, 1], "a whole number may have at most 4300 digits"),
        ("subtract", ["-" + "9" * 4300, 1], "a whole number may have at most 4300 digits"),
        ("reduce", ["multiply", [int("9" * 4000)] * 100], "a whole number may have at most 4300 digits"),
        ("add", [[0] * 100_000, 1], "[0, 0, 0, 0, 0, 0, ...] is not a number"),
    ],
)
async def test_the_error_of_a_failed_function_names_it(
    name: str, values: list[Any], words: str, tmp_path: Path
) -> None:
    async with function_server(tmp_path) as here:
        with pytest.raises(FunctionFailed, match=f"^`{name}` failed: ") as failed:
            await here.call(name, *values)
        assert words in failed.value.message
        assert (failed.value.status, failed.value.code) == (422, "function_failed")


@pytest.mark.parametrize("items", [[[number] for number in range(30, 0, -1)], [*range(100_001, 0, -1)]])
def test_a_sort_that_takes_long_can_be_stopped_at_each_comparison(items: list[Any]) -> None:
    events = list[str]()
    sys.setprofile(lambda frame, event, _: events.append(event) if frame.f_code.co_name == "<lambda>" else None)
    try:
        result = builtins.sort(items)
    finally:
        sys.setprofile(None)
    assert result == items[::-1]
    assert events.count("call") >= len(items) - 1


# Arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.0", 1.0),
        (" [1, 2] ", [1, 2]),
        ('"1"', "1"),
        ("true", True),
        ("null", None),
        ("01", 1),
        ("+1", 1),
        (".5", 0.5),
        ("1_000", "1_000"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-inf", "-inf"),
        ("1e999", "1e999"),
        ("١", "١"),
        ("True", "True"),
        ("", ""),
        ("{", "{"),
        ("[" * 100_000, "[" * 100_000),
        ("1" * 5000, "1" * 5000),
        ("__import__('os')", "__import__('os')"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_text_is_read_as_json_or_else_as_a_number_or_else_unchanged(text: str, value: Any) -> None:
    read = coerce(text, "any")
    assert (read, type(read)) == (value, type(value))


@given(JSON)
def test_the_result_of_a_function_is_an_argument_for_the_next_one(value: Any) -> None:
    if not isinstance(value, str):
        assert coerce(to_text(value), "any") == value
    assert coerce(value, "string") == to_text(value)


@given(st.text())
def test_a_text_for_a_text_parameter_is_unchanged(text: str) -> None:
    assert coerce(text, "string") == text


async def test_annotations_and_defaults_decide_how_arguments_are_read(tmp_path: Path) -> None:
    source = """
from __future__ import annotations
from typing import Any, Optional

def kinds(
    a, b: str, c: int, d: float, e: bool, f: list, g: dict, h: list[str], i: Optional[str], j: int | None, k: Any
):
    return [type(x).__name__ for x in (a, b, c, d, e, f, g, h, i, j, k)]

def defaults(a, b="x", c: int = 3, d=object):
    return [a, b, c, d is object]

def bare(a, b, /, c):
    return [a, b, c]

def odd(a: "no such thing"):
    return a
"""
    async with function_server(tmp_path, source) as here:
        values = ["1", "1", "1.0", "1", "true", "[]", "{}", "[]", "1", "1", "1"]
        assert await here.call("kinds", *values) == (
            '["int", "str", "int", "float", "bool", "list", "dict", "list", "str", "int", "int"]'
        )
        assert await here.call("defaults", 1) == '[1, "x", 3, true]'
        assert await here.call("defaults", 1, c="4") == '[1, "x", 4, true]'
        assert await here.call("bare", 1, 2, c=3) == "[1, 2, 3]"
        assert await here.call("odd", "[1]") == "[1]"
        for name, value, words in [
            ("c", "1.5", "a whole number"),
            ("e", "1", "true or false"),
            ("g", "[]", "an object"),
        ]:
            with pytest.raises(FunctionFailed, match=f"{name}: .* is not {words}"):
                await here.call("kinds", *values, **{name: value})
        params = (await here.functions.registered())["defaults"].params
        assert [(param.name, param.has_default, param.default) for param in params] == [
            ("a", False, None),
            ("b", True, '"x"'),
            ("c", True, "3"),
            ("d", True, None),
        ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {1, 2}", "set cannot be JSON"),
        ("return lambda: 1", "function cannot be JSON"),
        ("return float('nan')", "cannot be JSON"),
        ("return '\\ud800'", "is not valid Unicode"),
        ("x = []; x.append(x); return x", "cannot be JSON"),
        ("yield 1", "generator cannot be JSON"),
        ("raise ValueError('it says why')", "it says why"),
        ("raise ValueError", "ValueError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return f()", "recursion"),
        ("raise StopIteration", "StopIteration"),
        ("raise TimeoutError('mine')", "mine"),
    ],
)
async def test_any_exception_or_invalid_result_is_a_failure_of_the_function(
    body: str, words: str, tmp_path: Path
) -> None:
    async with function_server(tmp_path, f"def f():\n    {body}\ndef fine(): return 1") as here:
        with pytest.raises(FunctionFailed, match=r"^`f` failed: ") as failed:
            await here.call("f")
        assert words in failed.value.message
        assert not isinstance(failed.value, FunctionTimedOut)
        assert await here.call("fine") == "1"


async def test_a_result_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions_module, "MAX_RESULT_CHARACTERS", 1_000_000)
    async with function_server(tmp_path, "def f(n: int): return 'x' * n") as here:
        assert await here.call("f", 1_000_000) == "x" * 1_000_000
        with pytest.raises(FunctionFailed, match="must return at most 1000000 characters"):
            await here.call("f", 1_000_001)


# Threads


async def test_functions_run_concurrently_in_threads(tmp_path: Path) -> None:
    source = """
import threading
both = threading.Barrier(2, timeout=60)
def meet():
    both.wait()
    return threading.current_thread() is not threading.main_thread()
"""
    async with function_server(tmp_path, source) as here:
        assert await together([here.call("meet"), here.call("meet")]) == ["true", "true"]


async def test_async_functions_are_awaited(tmp_path: Path) -> None:
    source = """
import asyncio
async def later(x):
    await asyncio.sleep(0)
    return [x]
async def leave(): raise SystemExit
async def cancel(): raise asyncio.CancelledError
async def late(): raise TimeoutError
async def long(): await asyncio.sleep(60)
"""
    async with function_server(tmp_path, source) as here:
        assert await here.call("later", "1") == "[1]"
        assert await here.call("map", "later", [1, 2]) == "[[1], [2]]"
        for name in ("leave", "cancel", "late"):
            with pytest.raises(FunctionFailed, match=f"`{name}` failed"):
                await here.call(name)
        with here.time_limit(0.1), pytest.raises(FunctionTimedOut, match=r"`long` took more than 0.1 s"):
            await here.call("long")


@pytest.mark.parametrize("body", ["while True: pass", "import time; [time.sleep(0.01) for _ in range(10**9)]"])
async def test_a_function_that_hangs_is_stopped_and_named(body: str, tmp_path: Path) -> None:
    async with function_server(tmp_path, f"def f():\n    {body}\ndef fine(): return 1") as here:
        with here.time_limit(1), pytest.raises(FunctionTimedOut, match=r"`f` took more than 1 s") as failed:
            await here.call("f")
        assert (failed.value.status, failed.value.code) == (504, "function_timed_out")
        assert await here.call("fine") == "1"
        await wait_for_threads_to_end()


async def wait_for_threads_to_end() -> None:
    async with asyncio.timeout(60):
        while any(thread.name == "function" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)


async def test_cancelling_a_call_stops_its_function(tmp_path: Path) -> None:
    async with function_server(tmp_path, "def f():\n    while True: pass", seconds=60) as here:
        call = asyncio.ensure_future(here.call("f"))
        while not any(thread.name == "function" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await wait_for_threads_to_end()


async def test_functions_that_cannot_be_stopped_occupy_a_bounded_number_of_threads() -> None:
    threads, release = WorkerThreads(2), threading.Event()
    blocked: list[Callable[[], Any]] = [lambda: release.wait(60)] * 2  # a thread cannot be stopped in this wait
    for call in blocked:
        with pytest.raises(TimeoutError):
            await threads.run(call, 0.05)
    with pytest.raises(Overloaded):
        await threads.run(lambda: 1, 0.05)
    # both threads were still stuck when the third call failed
    assert sum(thread.name == "function" for thread in threading.enumerate()) == 2
    release.set()
    assert await threads.run(lambda: 1, 60) == 1
    await wait_for_threads_to_end()


async def test_the_wait_for_a_thread_is_no_time_of_the_work() -> None:
    threads = WorkerThreads(1)
    assert await together(threads.run(lambda: time.sleep(1.2), 2) for _ in range(2)) == [None, None]


async def test_a_thread_that_cannot_be_started_occupies_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = WorkerThreads(1)
    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", no_more_threads)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                await threads.run(lambda: 1, 10)
    assert await threads.run(lambda: 1, 60) == 1


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_many_short_calls_all_return() -> None:
    threads = WorkerThreads(4)
    assert await together(threads.run(lambda turn=turn: turn, 30) for turn in range(500)) == list(range(500))  # type: ignore[misc]
    await wait_for_threads_to_end()


# Files


async def test_functions_of_a_file_that_is_not_loaded_yet_can_be_called_concurrently(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        here, there = FunctionServer(store, tmp_path / "functions"), FunctionServer(store, tmp_path / "functions")
        await here.register("def f(): return 1\ndef g(): return 2")
        first = asyncio.ensure_future(there.call("f"))  # a caller that leaves during the read does not affect others
        await asyncio.sleep(0)
        first.cancel()
        assert await together(there.call(name) for name in "fgfg") == ["1", "2", "1", "2"]


async def test_a_sync_reloads_an_edited_file_in_every_process(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        here, there = FunctionServer(store, tmp_path / "functions"), FunctionServer(store, tmp_path / "functions")
        await here.register("def f(): return 1")
        assert (await here.call("f"), await there.call("f")) == ("1", "1")
        # given another text of the same size in the same second, which the file's date does not show
        await here.register("def f(): return 2")
        there.functions.invalidate()  # as the notification of the sync does
        assert (await here.call("f"), await there.call("f")) == ("2", "2")
        # when the function takes another argument, the registry knows that too
        await here.register("def f(x): return x")
        there.functions.invalidate()
        assert await there.call("f", 3) == "3"


async def test_a_broken_file_does_not_affect_other_functions(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        here = FunctionServer(store, tmp_path / "functions")
        await here.register("def f(): return 1")
        await here.register("def f(: return 1")
        assert {"f", "add"} <= (await here.functions.registered()).keys()
        assert await here.call("add", 1, 2) == "3"
        with pytest.raises(FunctionFailed, match=r"`f` is registered, but .* \(custom_test.py, line 1: SyntaxError"):
            await here.call("f")


async def test_the_error_for_a_function_without_its_file_names_it(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        await FunctionServer(store, tmp_path / "here").register("def f(): return 1")
        with pytest.raises(FunctionFailed, match=r"`f` is registered, but this server cannot load it;"):
            await FunctionServer(store, tmp_path / "there").call("f")


def test_only_public_functions_of_the_file_itself_are_found(tmp_path: Path) -> None:
    (tmp_path / "custom_a.py").write_text(
        """
from math import sqrt
from json import dumps as mine
import os
from dataclasses import dataclass
@dataclass
class Point:
    x: int
def _hidden(): return 1
def seen(): return Point(1).x
twice = lambda x: 2 * x
"""
    )
    (tmp_path / "other.py").write_text("def unseen(): return 1")
    scanned = scan([tmp_path, tmp_path / "nowhere"])
    assert [name for name, ready in scanned.ready.items() if ready.function.module == "custom_a"] == ["seen", "twice"]
    assert (scanned.broken, scanned.unread) == ((), ())


async def test_a_file_that_hangs_fails_the_sync(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        here = FunctionServer(store, tmp_path / "functions", seconds=0.3)
        with pytest.raises(FunctionTimedOut, match="Reading the files of functions"):
            await here.register("while True: pass")
        assert issubclass(FunctionTimedOut, SignoffError)
        await wait_for_threads_to_end()
