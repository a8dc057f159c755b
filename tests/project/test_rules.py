"""The rules of this code base that can be checked by reading its code and its documents."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from signoff.core.api_paths import KNOWN
from signoff.core.decode import BYTE_ORDER_MARK
from signoff.core.job import STATUSES, TERMINAL, Job
from signoff.core.transitions import TRANSITIONS, Guard
from signoff.doors.openai.door import COHERE_RERANK
from signoff.settings import Settings
from support.syntax import tree_of

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "signoff"
DOCS = ROOT / "docs"
HISTORY = "stores/migrations/versions/"
LONGEST_MODULE = 400
LONGEST_FUNCTION = 50
NAMELESS = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "base", "misc"}
# Doors may use these parts of the services. For all else there is an operation in work/.
FOR_DOORS = r" (clock|ids\.new_id|runtime\.(background|shutdown))$"
GROUPS = {"adapters", "caches", "runtime", "ids"}
VERBS_OF_HTTP = {"GET", "POST", "PUT", "PATCH", "DELETE"}


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the source by its path."""
    return {str(path.relative_to(SOURCE)): tree_of(path) for path in sorted(SOURCE.rglob("*.py"))}


@cache
def nodes(tree: ast.AST) -> list[ast.AST]:
    """Return every node of a tree."""
    return list(ast.walk(tree))


def outside() -> Iterator[tuple[str, ast.AST]]:
    """Yield each node of the doors and the dashboard, with the path of its module."""
    for name, tree in modules().items():
        if name.startswith(("doors/", "dashboard/")):
            yield from ((name, node) for node in nodes(tree))


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """Yield the calls of a function or method `name`."""
    for node in nodes(tree):
        if isinstance(node, ast.Call) and called(node) == name:
            yield node


def called(call: ast.Call) -> str:
    """Return the name of the called function or method."""
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def keywords(call: ast.Call) -> dict[str | None, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def texts(node: ast.AST | None) -> set[str]:
    """Return every string literal below `node`."""
    descendants = ast.walk(node) if node else ()
    return {text.value for text in descendants if isinstance(text, ast.Constant) and isinstance(text.value, str)}


def keys(node: ast.AST | None) -> set[str]:
    """Return the literal keys of a dict literal."""
    return {text for key in node.keys for text in texts(key)} if isinstance(node, ast.Dict) else set()


# Layers


def is_services(node: ast.expr) -> bool:
    return getattr(node, "id", "") == "services" or getattr(node, "attr", "") in {"services", "_services"}


def test_doors_use_only_permitted_parts_of_the_services() -> None:
    paths = {f"{at}:{node.lineno} {path}" for at, node in outside() if (path := path_from_services(node))}
    assert paths
    assert not {path for path in paths if not re.search(FOR_DOORS, path)}, "an operation in work/ should do this"


def path_from_services(node: ast.AST) -> str | None:
    """Return what `node` reads from the services, one level below a group: `runtime.background`."""
    match node:
        case ast.Attribute(attr=attr, value=ast.Attribute(attr=group, value=value)) if is_services(value):
            return f"{group}.{attr}"
        case ast.Attribute(attr=attr, value=value) if is_services(value) and attr not in GROUPS:
            return attr
    return None


def test_pages_check_the_bodies_that_they_make_as_the_api_does() -> None:
    # A call of a struct does not check the limits of its fields, which `parse_json` and `parse_fields` do.
    parsed = (
        call for name, tree in modules().items() if name.startswith("doors/") for call in calls(tree, "parse_json")
    )
    bodies = {call.args[1].id for call in parsed if isinstance(call.args[1], ast.Name)}
    assert {"TokenRequest", "NewPrice", "LimitDescription", "QueueChange", "UserChange"} <= bodies
    unchecked = [
        f"{name}:{node.lineno} {node.func.id}"
        for name, tree in modules().items()
        if name.startswith("dashboard/")
        for node in nodes(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in bodies
    ]
    assert unchecked == []


def test_doors_give_the_services_no_other_name() -> None:
    assert not [f"{at}:{getattr(node, 'lineno', 0)}" for at, node in outside() if hides_services(node)]


def hides_services(node: ast.AST) -> bool:
    """Return True if a parameter, a variable, or a call gives the services another name."""
    match node:
        case ast.arg(arg=name, annotation=ast.expr() as annotation):
            return ast.unparse(annotation) in {"Services", "InjectedServices"} and name != "services"
        case ast.Assign(targets=targets, value=value):
            return is_services(value) and not all(is_services(target) for target in targets)
        case ast.NamedExpr(target=target, value=value):
            return is_services(value) and not is_services(target)
        case ast.Call(args=[first, *_]) if called(node) in {"getattr", "vars"}:
            return is_services(first)
    return False


# Transitions


def test_every_guard_is_used_by_a_transition_and_known_to_the_store() -> None:
    assert {guard for transition in TRANSITIONS.values() for guard in transition.guards} == set(Guard)
    for folder in ("core/transitions.py", "stores/"):
        trees = [tree for name, tree in modules().items() if name.startswith(folder)]
        named = {
            node.attr
            for tree in trees
            for node in nodes(tree)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Guard"
        }
        assert named == set(Guard.__members__)


@pytest.mark.parametrize("verb", TRANSITIONS)
def test_a_transition_uses_known_statuses_and_columns(verb: str) -> None:
    transition = TRANSITIONS[verb]
    assert transition.verb == verb
    assert transition.targets
    assert {*transition.sources, *transition.targets} <= set(STATUSES)
    assert not TERMINAL & set(transition.sources), "what has ended stays as it is"
    assert transition.sources or verb in {"submit", "hit", "refuse", "present"}
    assert {*transition.clears, *transition.adds} <= set(Job.__struct_fields__)


def test_every_status_is_reached_and_every_unfinished_one_is_left() -> None:
    assert {target for transition in TRANSITIONS.values() for target in transition.targets} == set(STATUSES)
    leaves = {
        source
        for transition in TRANSITIONS.values()
        for source in transition.sources
        if set(transition.targets) != {source}
    }
    assert leaves == set(STATUSES) - TERMINAL


def transition_requests() -> Iterator[tuple[str, ast.Call]]:
    for name, tree in modules().items():
        for call in calls(tree, "TransitionRequest"):
            yield f"{name}:{call.lineno}", call


def test_every_requested_verb_is_a_transition() -> None:
    verbs = {verb for _, call in transition_requests() for verb in texts(keywords(call).get("verb"))}
    verbs |= {
        verb for tree in modules().values() for call in calls(tree, "_transition") for verb in texts(call.args[0])
    }
    verbs |= {
        verb for node in ast.walk(modules()["work/record.py"]) if isinstance(node, ast.List) for verb in texts(node)
    }
    assert verbs
    assert verbs <= TRANSITIONS.keys()


def test_every_transition_request_changes_known_columns_and_names_its_target() -> None:
    for location, call in transition_requests():
        arguments = keywords(call)
        columns = keys(arguments.get("changes")) | keys(arguments.get("after_seconds"))
        assert columns <= set(Job.__struct_fields__), location
        for verb in texts(arguments.get("verb")) & TRANSITIONS.keys():
            targets = texts(arguments.get("to"))
            assert targets <= set(TRANSITIONS[verb].targets), location
            assert targets or len(TRANSITIONS[verb].targets) == 1, location


# Style


def test_a_module_docstring_starts_with_a_sentence() -> None:
    firsts = {name: (ast.get_docstring(tree) or "").partition("\n\n")[0] for name, tree in modules().items()}
    offences = {name: first for name, first in firsts.items() if not re.match(r"[A-Z`].*[.?:]$", first, re.DOTALL)}
    assert firsts
    assert offences == {}


def test_a_module_is_short() -> None:
    # all errors are one drawn tree
    sizes = {name: len((SOURCE / name).read_text().splitlines()) for name in modules() if name != "errors.py"}
    assert {name: size for name, size in sizes.items() if size > LONGEST_MODULE} == {}


def test_a_function_is_short() -> None:
    sizes = {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in modules().items()
        if not name.startswith(HISTORY)
        for node in nodes(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert sizes
    assert {name: size for name, size in sizes.items() if size > LONGEST_FUNCTION} == {}


def test_no_loop_only_passes_on_what_another_generator_yields() -> None:
    """Each such layer costs every chunk of every answer; see docs/decisions/022."""
    offences = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in nodes(tree)
        if isinstance(node, ast.For | ast.AsyncFor)
        and [ast.unparse(statement) for statement in node.body] == [f"yield {ast.unparse(node.target)}"]
    ]
    assert not offences


# Packages that only certain settings or requests need, and what no command needs that only reads and writes.
FOREIGN = {"aio_pika", "aiokafka", "aiormq", "any_llm", "asyncpg", "faststream", "nats", "paho", "redis", "xllamacpp"}
FOREIGN |= {"alembic", "smtplib", "sqlalchemy.dialects.postgresql"}
OF_SERVERS = {"aiohttp", "jinja2", "litestar", "signoff.asgi", "signoff.doors", "signoff.server.supervisor", "uvicorn"}


def modules_after(folder: Path, script: str) -> set[str]:
    """Return the names of the modules that a process has imported at the end of `script`, with a migrated database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNOFF_")}
    subprocess.run([sys.executable, "-m", "signoff", "migrate"], cwd=folder, env=environment, check=True)
    command = [sys.executable, "-c", f"import sys\n{script}\nprint('modules', *sys.modules)"]
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return set(completed.stdout.rpartition("modules ")[2].split())


def command_modules(imported: set[str]) -> set[str]:
    return {name.removeprefix("signoff.commands.") for name in imported if name.startswith("signoff.commands.")}


def test_a_server_on_defaults_imports_no_client_of_another_service(tmp_path: Path) -> None:
    script = """
import asyncio
import signoff.cli
from signoff.asgi import Application

async def answer():
    application = Application()
    await application._start()
    await application.close()

asyncio.run(answer())
"""
    imported = modules_after(tmp_path, script)
    assert {"litestar", "signoff.engines.openai"} <= imported
    assert not FOREIGN & imported
    assert command_modules(imported) == {"help", "terminal"}


def test_a_command_imports_only_what_it_uses(tmp_path: Path) -> None:
    script = """
from signoff.cli import main

def run(*arguments):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as error:
        assert error.code == 0

run("user", "create", "ann@example.com")
run("token", "create", "ann@example.com")
"""
    imported = modules_after(tmp_path, script)
    assert {"signoff.stores.sql", "sqlalchemy"} <= imported
    assert not (FOREIGN | OF_SERVERS) & imported
    assert command_modules(imported) == {"help", "people", "terminal"}


def test_the_help_imports_neither_the_database_nor_the_server(tmp_path: Path) -> None:
    script = "sys.argv[1:] = ['--help']\nfrom signoff.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not (FOREIGN | OF_SERVERS | {"sqlalchemy"}) & modules_after(tmp_path, script)


def test_no_module_or_class_has_a_meaningless_name() -> None:
    names = {part for module in modules() for part in Path(module).with_suffix("").parts}
    classes = {node.name for tree in modules().values() for node in nodes(tree) if isinstance(node, ast.ClassDef)}
    words = {word.lower() for name in names | classes for word in re.findall(r"[A-Z]?[a-z]+", name)}
    assert not words & NAMELESS


# Documents


def documented(page: str) -> str:
    return (DOCS / page).read_text()


def in_code_font(page: str) -> set[str]:
    """Return every text between backticks on `page`."""
    return set(re.findall(r"`([^`\n]+)`", documented(page)))


def codes() -> set[str]:
    """Return every error code in the source."""
    values = set[str]()
    for tree in modules().values():
        for node in nodes(tree):
            if isinstance(node, ast.ClassDef):
                values |= {code for line in node.body for code in code_in(line)}
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") == "code":
                values |= texts(node.value)
        for error in [*calls(tree, "JobError"), *calls(tree, "JobFailed")]:
            values |= texts(keywords(error).get("code"))
    return values


def code_in(line: ast.stmt) -> set[str]:
    """The code of `code = "…"`, `code: str = "…"` or `status, code = 400, "…"` in a class."""
    if not isinstance(line, ast.Assign | ast.AnnAssign):
        return set()
    target = line.targets[0] if isinstance(line, ast.Assign) else line.target
    names = [getattr(name, "id", "") for name in getattr(target, "elts", [target])]
    values = getattr(line.value, "elts", [line.value])
    return {code for name, value in zip(names, values, strict=False) if name == "code" for code in texts(value)}


def test_every_error_code_is_documented() -> None:
    assert {"model_not_found", "rejected", "job_failed", "internal_error"} <= codes()
    assert codes() - in_code_font("errors.md") == set()


def test_every_setting_is_documented() -> None:
    assert set(Settings.model_fields) - in_code_font("settings.md") == set()
    assert {f"SIGNOFF_{name.upper()}" for name in Settings.model_fields} - in_code_font("settings.md") == set()


def routes(tmp_path: Path) -> set[str]:
    """Return `METHOD /path` of every route, except the pages and files of the schema itself."""
    from signoff.server.bootstrap import open_services
    from signoff.server.http import make_router

    async def rest() -> Any:
        settings = Settings(data_dir=tmp_path)
        async with open_services(settings) as services:
            return make_router(services, settings)._rest

    served = {
        f"{method} {route.path_format}"
        for route in asyncio.run(rest()).routes
        for method in getattr(route, "methods", ())
        if method in VERBS_OF_HTTP
        if not route.path_format.startswith(("/schema", "/static")) or route.path_format == "/schema/asyncapi.json"
    }
    return served | hot_routes()


def hot_routes() -> set[str]:
    """Return the routes of the OpenAI door that are not passed on, and of the predict and the cached door."""
    predicting = {f"{method} /{kind}/{{operation}}" for method in ("GET", "POST") for kind in ("get", "post")}
    cached = {"POST /api/openai/{endpoint}", "POST /api/cache/{endpoint}", "GET /api/cache", "DELETE /api/cache"}
    files = {"POST /v1/files", "GET /v1/files", "GET /v1/files/{file_id}", "GET /v1/files/{file_id}/content"}
    batches = {
        f"{method} {prefix}/batches{rest}"
        for prefix in ("/v1", "/v1/messages")
        for method, rest in (("POST", ""), ("GET", ""), ("GET", "/{batch_id}"), ("POST", "/{batch_id}/cancel"))
    }
    messages = {"GET /v1/messages/batches/{batch_id}/results", "DELETE /v1/messages/batches/{batch_id}"}
    local = {*files, "DELETE /v1/files/{file_id}", *batches, *messages}
    return {f"POST {path}" for path in (*KNOWN, COHERE_RERANK)} | {"GET /v1/models"} | predicting | cached | local


def test_every_operation_on_a_model_is_documented() -> None:
    cases = [
        case.pattern
        for node in ast.walk(modules()["doors/predict.py"])
        if isinstance(node, ast.Match)
        for case in node.cases
    ]
    operations = {ast.literal_eval(pattern.value) for pattern in cases if isinstance(pattern, ast.MatchValue)}
    assert {"predict", "getlogs", "cleanlogs", "addmodel"} <= operations
    assert operations - in_code_font("models.md") == set()


def test_every_route_is_documented_and_every_documented_route_exists(tmp_path: Path) -> None:
    served = routes(tmp_path)
    assert {"POST /v1/chat/completions", "POST /enqueue", "GET /api/jobs/{job_id}"} <= served
    written = {route.partition("?")[0] for route in in_code_font("api.md") if route.split(" ")[0] in VERBS_OF_HTTP}
    assert served - written == set()
    assert {route for route in written - served if not route.startswith("GET /v1/models/")} == set()


def commands(group: Any, *before: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with its words."""
    if not hasattr(group, "commands"):
        yield " ".join(before), group
        return
    for name, command in group.commands.items():
        yield from commands(command, *before, name)


def test_the_help_of_every_command_has_an_example_that_works_and_names_values_as_users_do() -> None:
    import typer.main

    from signoff.cli import cli

    cli.add_needed()
    for words, command in commands(typer.main.get_command(cli)):
        lines = [line for line in (command.epilog or "").split("\n\n") if "signoff " in line]
        assert lines, words
        for line in lines:
            example = re.fullmatch(rf"(?:TOKEN=\$\()?signoff {words}\b(.*?)\)?(?: [<>] \S+)?", line)
            assert example is not None, line
            context = command.make_context("signoff", shlex.split(example[1]))  # raises for what it does not take
        for parameter in command.get_params(context):
            if parameter.param_type_name == "option":
                assert re.fullmatch("" if parameter.is_flag else "<[A-Z]+>", parameter.metavar), parameter.opts
            else:
                assert re.fullmatch(r"[A-Z]+(\.\.\.)?", parameter.metavar), words
                assert parameter.help, words


def test_every_command_and_every_option_is_documented() -> None:
    import typer.main

    from signoff.cli import cli

    cli.add_needed()
    _, _, explained = documented("cli.md").partition("<!-- /commands -->")
    lines = re.findall(r"`(signoff [^`\n]+)`", explained)
    for words, command in commands(typer.main.get_command(cli)):
        line = next((line for line in lines if f"{line} ".startswith(f"signoff {words} ")), None)
        assert line is not None, words
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("--")):
            assert option in line, f"{words} {option}"


def test_the_byte_order_mark_is_removed_in_one_way() -> None:
    for name, tree in modules().items():
        for call in calls(tree, "read_text"):
            assert call.args or keywords(call), f"{name}:{call.lineno}: name the encoding, such as TEXT_ENCODING"
        marks = [node for node in nodes(tree) if isinstance(node, ast.Constant) and node.value == BYTE_ORDER_MARK]
        assert not marks or name == "core/decode.py", f"{name}: use without_mark"
