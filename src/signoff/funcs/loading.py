"""Loading of functions from their files. Errors in one file are reported and do not affect the others."""

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
BUILTINS = "builtins"
PREFIX = "signoff_funcs_"


class BrokenFile(msgspec.Struct, frozen=True):
    """Error in a file of functions."""

    file: str
    """Name of the file, without its folder."""
    line: int
    """Line of the error, from 1."""
    message: str
    """Message of the error, with its type if the file could not be executed."""


class LoadedFunction(msgspec.Struct, frozen=True):
    """Function that this process can call."""

    function: Function
    """Its signature and version, as pipelines see them."""
    python: Callable[..., Any]
    """Its Python, which converts the arguments as annotated."""


class Scan(msgspec.Struct, frozen=True):
    """Result of reading all files."""

    ready: dict[str, LoadedFunction]
    """Functions by name."""
    broken: tuple[BrokenFile, ...]
    """Errors, in files and in single functions."""
    unread: tuple[str, ...]
    """Names of the modules that could not be executed at all."""


def scan(folders: Sequence[Path]) -> Scan:
    """Read every function of the builtins, and of the `custom_*.py` files beside them and in `folders`."""
    functions, broken, unread = dict[str, LoadedFunction](), list[BrokenFile](), list[str]()
    files = [
        HOME / f"{BUILTINS}.py",
        *(file for folder in (HOME, *folders) for file in sorted(folder.glob("custom_*.py"))),
    ]
    for file in files:
        try:
            module, digest = _execute(file)
        except BaseException as error:  # noqa: BLE001 -- a file may raise anything, even SystemExit
            broken.append(BrokenFile(file.name, _error_line(error, file), f"{type(error).__name__}: {error}"))
            unread.append(file.stem)
            continue
        for name, python in _functions(module):
            try:
                functions[name] = _load(functions, name, python, file.stem, digest)
            except ValueError as error:
                broken.append(BrokenFile(file.name, python.__code__.co_firstlineno, str(error)))
    return Scan(functions, tuple(broken), tuple(unread))


def _execute(file: Path) -> tuple[ModuleType, str]:
    """Execute a file and return its module with the digest of its source. Compiled copies are not used."""
    source = file.read_bytes()
    name = PREFIX + file.stem
    module, previous = ModuleType(name), sys.modules.get(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)  # noqa: S102 -- the operator's own code
    except BaseException:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        raise
    return module, hashlib.sha256(source).hexdigest()


def _functions(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the public functions that the module itself defines, in order of definition."""
    functions = [(name, value) for name, value in vars(module).items() if inspect.isfunction(value)]
    return [(name, value) for name, value in functions if value.__module__ == module.__name__ and name[0] != "_"]


def _load(functions: dict[str, LoadedFunction], name: str, python: Any, module: str, digest: str) -> LoadedFunction:
    if name in functions:
        raise ValueError(f"{name} is already defined in {functions[name].function.module}.py")
    if not is_valid_name(name):
        raise ValueError(f"{name} is not a name that a pipeline can call; rename the function")
    function = describe_function(python, name=name, module=module, digest=digest)
    return LoadedFunction(function, with_coercion(python, function))


def _error_line(error: BaseException, file: Path) -> int:
    """Return the line of that file at which `error` was raised, 1 if unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == str(file)), 1)
