"""Loading: reads the files of functions, anew each time; a broken one is told of, and takes nothing else down."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from signoff.core.pipelines.function import Function
from signoff.core.pipelines.names import is_valid_name
from signoff.funcs.signature import describe_function, with_coercion

HOME = Path(__file__).parent
PREFIX = "signoff_funcs_"


class BrokenFile(msgspec.Struct, frozen=True):
    """What is wrong in a file, and where."""

    file: str
    line: int
    message: str


class LoadedFunction(msgspec.Struct, frozen=True):
    """A function that can be called from here."""

    function: Function
    python: Callable[..., Any]


class Scan(msgspec.Struct, frozen=True):
    """What the files hold. `unread` are the modules that could not be read at all."""

    ready: dict[str, LoadedFunction]
    broken: tuple[BrokenFile, ...]
    unread: tuple[str, ...]


def scan(folders: Sequence[Path]) -> Scan:
    """Every function of the builtins, and of the `custom_*.py` files in their folder and in `folders`."""
    ready, broken, unread = dict[str, LoadedFunction](), list[BrokenFile](), list[str]()
    files = [
        HOME / "builtins.py",
        *(file for folder in (HOME, *folders) for file in sorted(folder.glob("custom_*.py"))),
    ]
    for file in files:
        try:
            module, digest = _run(file)
        except BaseException as error:  # noqa: BLE001 -- a file may raise anything, even SystemExit
            broken.append(BrokenFile(file.name, _line(error, file), f"{type(error).__name__}: {error}"))
            unread.append(file.stem)
            continue
        for name, python in _functions(module):
            try:
                ready[name] = _ready(ready, name, python, file.stem, digest)
            except ValueError as error:
                broken.append(BrokenFile(file.name, python.__code__.co_firstlineno, str(error)))
    return Scan(ready, tuple(broken), tuple(unread))


def _run(file: Path) -> tuple[ModuleType, str]:
    """The file's module, made of its text as it is now: no compiled copy is trusted."""
    source = file.read_bytes()
    name = PREFIX + file.stem
    module, before = ModuleType(name), sys.modules.get(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)  # noqa: S102 -- the operator's own code
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module, hashlib.sha256(source).hexdigest()


def _functions(module: ModuleType) -> list[tuple[str, Any]]:
    """Those that it defines itself, and does not hide, in their order."""
    found = [(name, value) for name, value in vars(module).items() if inspect.isfunction(value)]
    return [(name, value) for name, value in found if value.__module__ == module.__name__ and name[0] != "_"]


def _ready(ready: dict[str, LoadedFunction], name: str, python: Any, module: str, digest: str) -> LoadedFunction:
    if name in ready:
        raise ValueError(f"{name} is defined in {ready[name].function.module}.py already")
    if not is_valid_name(name):
        raise ValueError(f"{name} is no name that a pipeline can call")
    function = describe_function(python, name=name, module=module, digest=digest)
    return LoadedFunction(function, with_coercion(function)(python))


def _line(error: BaseException, file: Path) -> int:
    """The last line of that file which was at work."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == str(file)), 1)
