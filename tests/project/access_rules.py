"""Rules of who may do what, checked on the syntax trees of the doors and of the operations in `work/`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Decorators of Litestar that make a function a handler.
HANDLERS = {"get", "head", "post", "put", "patch", "delete", "route", "websocket", "asgi", "sse"}
INJECTED = "InjectedCaller"
# Functions that raise an error, or return False, unless the caller they get may use the object.
CHECKS = {
    "get_job",
    "find_batch",
    "find_file",
    "may_read",
    "get_item",
    "get_model",
    "list_models",
    "check_admin",
    "may_manage",
    "may_review",
    "may_remove",
    "may_use_item",
    "_find_item",
    "_get_changeable",
    "get_bulk",
    "check_queue_of",
    "load_held",
    "_load_run",
    "_narrow",
    "_owner",
    "_owner_of",
}
# Methods of the store that return one row by its id, whoever owns it.
READS = {
    "jobs.get",
    "jobs.by_client_id",
    "jobs.events",
    "deliveries.get",
    "catalog.known_key",
    "people.user",
    "files.get",
    "batches.get",
}
# Methods of the store that return rows that belong to an object, a user, or nobody in particular.
LISTS = {
    "batches.lines",
    "batches.totals",
    "deliveries.of_job",
    "jobs.list",
    "jobs.statuses",
    "library.versions",
    "objects.creators",
    "people.tokens",
    "reviews.blind_votes",
    "reviews.bulk",
    "reviews.decisions",
    "reviews.votes",
    "runs.calls",
    "runs.steps",
}
# Parameters that name one object, beside those that end in `_id` and are not the cursor `after_id`.
OBJECT_NAMES = {"key", "name", "who", "email"}


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function of a tree."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls below `node`, in the order of the text."""
    below = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    yield from sorted(below, key=lambda call: (call.lineno, call.col_offset))


def called(call: ast.Call) -> str:
    """Return the name of the called function or method."""
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def handlers(tree: ast.AST) -> Iterator[Function]:
    """Yield the handlers of Litestar in a tree."""
    for function in functions(tree):
        decorators = [each.func for each in function.decorator_list if isinstance(each, ast.Call)]
        if HANDLERS & {getattr(each, "id", "") or getattr(each, "attr", "") for each in decorators}:
            yield function


def unidentified(module: str, tree: ast.AST, exempt: Mapping[str, str]) -> list[str]:
    """Return the routes of a module that do not identify their caller, except those in `exempt`.

    A handler of Litestar has the parameter `caller: InjectedCaller`. The method `_route` of a door in plain ASGI calls
    `caller_of` in a statement of its own, before it awaits anything else.
    """
    routes = [(each, _injects_caller(each)) for each in handlers(tree)]
    routes += [
        (method, _identifies_first(method))
        for door in ast.walk(tree)
        if isinstance(door, ast.ClassDef) and "AsgiDoor" in {getattr(each, "id", "") for each in door.bases}
        for method in functions(door)
        if method.name in {"_route", "__call__"}
    ]
    names = [f"{module} {function.name}" for function, is_identified in routes if not is_identified]
    return sorted(name for name in names if name not in exempt)


def _injects_caller(function: Function) -> bool:
    parameters = [*function.args.args, *function.args.kwonlyargs]
    return any(each.arg == "caller" and getattr(each.annotation, "id", "") == INJECTED for each in parameters)


def _identifies_first(method: Function) -> bool:
    for statement in method.body:
        awaited = [each.value for each in ast.walk(statement) if isinstance(each, ast.Await)]
        if awaited:
            is_own = isinstance(statement, ast.Assign | ast.Expr) and isinstance(statement.value, ast.Await)
            return (
                is_own and len(awaited) == 1 and isinstance(awaited[0], ast.Call) and called(awaited[0]) == "caller_of"
            )
    return False


def unchecked(module: str, tree: ast.AST, exempt: Mapping[str, str]) -> list[str]:
    """Return the operations of a module that use an object of a caller's choice without a check, except `exempt`.

    An operation is a function with a parameter `caller` and one that names an object. It passes the caller to a
    function in CHECKS, before it calls a method of the store that is not in READS.
    """
    names = list[str]()
    for function in functions(tree):
        parameters = {each.arg for each in [*function.args.args, *function.args.kwonlyargs]}
        named = {name for name in parameters if name in OBJECT_NAMES or re.search("(?<!^after)_id$", name)}
        if "caller" not in parameters or not named or f"{module} {function.name}" in exempt:
            continue
        if not _is_checked(function):
            names.append(f"{module} {function.name}: {', '.join(sorted(named))}")
    return names


def _is_checked(function: Function) -> bool:
    """Return True if a check comes before the first use of the store, and is not of another caller."""
    for call in calls(function):
        if called(call) in CHECKS and "caller" in {getattr(each, "id", "") for each in call.args}:
            return True
        if (method := store_method(call)) is not None and method not in READS:
            return False
    return False


def store_method(call: ast.Call) -> str | None:
    """Return the method of the store that is called, such as `jobs.get`."""
    text = ast.unparse(call.func)
    return text.partition("store.")[2] if "services.store." in text else None


def direct_loads(module: str, tree: ast.AST, loaders: Mapping[str, str]) -> list[str]:
    """Return the functions that call `load_job`, or a method in READS or LISTS, and are not in `loaders`."""
    names = set[str]()
    for function in functions(tree):
        if any(called(call) == "load_job" or store_method(call) in READS | LISTS for call in calls(function)):
            names.add(f"{module} {function.name}")
    return sorted(names - loaders.keys())


def unused(exempt: Mapping[str, str], modules: Mapping[str, ast.Module]) -> list[str]:
    """Return the entries of an exception list that name no function, so that a list cannot grow old."""
    known = {f"{module} {function.name}" for module, tree in modules.items() for function in functions(tree)}
    return sorted(exempt.keys() - known)


def unused_callers(module: str, tree: ast.AST, exempt: Mapping[str, str]) -> list[str]:
    """Return the routes of a module that identify their caller and then treat all callers alike, except `exempt`."""
    names = list[str]()
    for function in handlers(tree):
        is_used = any(getattr(each, "id", "") == "caller" for each in ast.walk(function) if isinstance(each, ast.Name))
        if _injects_caller(function) and not is_used:
            names.append(f"{module} {function.name}")
    return sorted(name for name in names if name not in exempt)


def without_caller(module: str, tree: ast.AST, work: Mapping[str, ast.Module], exempt: Mapping[str, str]) -> list[str]:
    """Return the operations that a module imports from `work`, by path, and that get no caller, except `exempt`.

    The caller may be within an `Ask`.
    """
    names = set[str]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("signoff.work."):
            continue
        path = (node.module or "").removeprefix("signoff.").replace(".", "/") + ".py"
        imported = {alias.name for alias in node.names}
        for function in functions(work[path]) if path in work else ():
            parameters = [*function.args.args, *function.args.kwonlyargs]
            takes_services = any(each.arg == "services" for each in parameters)
            has_caller = any(each.arg == "caller" or getattr(each.annotation, "id", "") == "Ask" for each in parameters)
            if function.name in imported and takes_services and not has_caller:
                names.add(f"{path} {function.name}")
    return sorted(names - exempt.keys())


def foreign_filters(module: str, tree: ast.AST) -> list[str]:
    """Return the lines of a door that list the rows of another user than the caller."""
    lines = list[str]()
    for call in calls(tree):
        for keyword in call.keywords:
            is_owner = called(call).endswith("Filter") and keyword.arg == "user_id"
            if is_owner and ast.unparse(keyword.value) not in {"caller.user_id", "request.caller.user_id"}:
                lines.append(f"{module} {call.lineno}")
    return lines
