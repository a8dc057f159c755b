"""Mark each test with what it needs, so that `-m` can select a tier.

`services`: the test uses PostgreSQL, RabbitMQ, Redis, NATS, MQTT, Kafka or a browser. `processes`: it starts processes.
`server`: the test runs a whole Signoff server in its own event loop. No test declares these marks: they follow from the
fixtures that a test uses, and from the code that it can reach within the folder of tests.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

TESTS = str(Path(__file__).parents[1])
SERVERS = {"postgres_server", "rabbitmq_url", "redis_url", "nats_url", "mqtt_url", "kafka_url", "chromium"}
SERVICES = ("postgres", "rabbit", "redis", "nats", "mqtt", "kafka")
"""Parts of the parameters of tests that choose a service at run time, with `getfixturevalue`."""
STARTING = {"subprocess", "Popen", "posix_spawn", "create_subprocess_exec", "SubprocessEngine", "PreloadedProcess"}
STARTING |= {"ProcessTree"}
"""Names and texts in the code of a test that starts processes."""
SERVING = {"uvicorn"}
"""Names in the code of a test that runs a server."""
IMPORTS_A_SERVER = re.compile(r"^\s*(from|import) (support\.(live_server|processes|pipelines)|uvicorn)\b", re.MULTILINE)
RUNNING = pytest.StashKey[pytest.Item]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip a file that imports a server if `-m` excludes servers, because the import takes longer than the tests."""
    if collection_path.suffix != ".py" or "not server" not in config.getoption("markexpr"):
        return None
    return True if IMPORTS_A_SERVER.search(collection_path.read_text()) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests before pytest selects some of them."""
    for item in items:
        if isinstance(item, pytest.Function):
            for mark in marks_of(item):
                item.add_marker(mark)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember which test asks for fixtures."""
    item.config.stash[RUNNING] = item


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Fail a test that uses a service and is not marked, because it would run in the wrong tier."""
    if fixturedef.argname in SERVERS:
        item = request.config.stash[RUNNING]
        assert item.get_closest_marker("services"), f"{item.nodeid} uses {fixturedef.argname}: see plugins/tiers.py"


def marks_of(item: pytest.Function) -> Iterator[str]:
    """Yield the marks of a test."""
    if not SERVERS.isdisjoint(item.fixturenames) or any(names_a_service(value) for value in parameters_of(item)):
        yield "services"
    fixtures = [definitions[-1].func for definitions in item._fixtureinfo.name2fixturedefs.values()]
    words = frozenset[str]().union(*(words_of(function) for function in [item.function, *fixtures]))
    if not STARTING.isdisjoint(words):
        yield "processes"
    if not SERVING.isdisjoint(words):
        yield "server"


def parameters_of(item: pytest.Function) -> list[object]:
    """Return the values of a test's parameters, and the parts of those that are tuples."""
    values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    return [part for value in values for part in (value if isinstance(value, tuple) else (value,))]


def names_a_service(value: object) -> bool:
    """Return True if a parameter selects a service, such as "postgres" or a class named after one."""
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    return any(service in name.lower() for service in SERVICES)


@cache
def words_of(function: Callable[..., object]) -> frozenset[str]:
    """Return the names and texts in a function's code, and in all code of the tests that it can reach."""
    words, seen, ahead = set[str](), set[object](), functions_in(function)
    while ahead:
        if (one := ahead.pop()) not in seen:
            seen.add(one)
            words_here, reached = inspect_code(one)
            words |= words_here
            ahead += reached
    return frozenset(words)


@cache
def inspect_code(function: FunctionType) -> tuple[frozenset[str], tuple[FunctionType, ...]]:
    """Return the names and texts in a function's own code, and the functions of the tests that it names."""
    names, texts = set[str](), set[str]()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        texts.update(text for text in code.co_consts if isinstance(text, str))
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    modules = [value for value in values if isinstance(value, ModuleType) and is_of_tests(value.__name__)]
    values += [vars(module)[name] for module in modules for name in names & vars(module).keys()]
    return frozenset(names | texts), tuple(inner for value in values for inner in functions_in(value))


def functions_in(value: object) -> list[FunctionType]:
    """Return the function, or the functions of the class, if the tests define it."""
    if isinstance(value, type):
        if not is_of_tests(value.__module__):
            return []
        return [inner for member in vars(value).values() if callable(member) for inner in functions_in(member)]
    if not callable(value):
        return []
    value = inspect.unwrap(getattr(getattr(value, "hypothesis", None), "inner_test", value))
    return [value] if isinstance(value, FunctionType) and value.__code__.co_filename.startswith(TESTS) else []


@cache
def is_of_tests(module: str) -> bool:
    """Return True if the module with this name is in the folder of tests."""
    return str(getattr(sys.modules.get(module), "__file__", "")).startswith(TESTS)
