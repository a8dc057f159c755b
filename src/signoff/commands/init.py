"""`signoff init`: a settings file to fill in, with the description and the default of each setting."""

import ast
import inspect
import json
import os
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import create_private_file, out
from signoff.settings import Settings

DEFAULT_FILE = Path("signoff.toml")
MAX_WIDTH = 120
HEAD = """\
Settings of Signoff. Remove the # in front of a setting, and change its value.
Options of a command take precedence over variables of the environment (SIGNOFF_PORT), these over .env, and .env over
this file. Without a value anywhere, the default applies, which is the value shown here; … stands for none.
"""

init_commands = CommandGroup(panel="Servers")


@init_commands.register("init", "signoff init", "signoff init /etc/signoff/signoff.toml")
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to create.")] = DEFAULT_FILE,
) -> None:
    """Write a settings file that lists all settings with their defaults, as comments."""
    with os.fdopen(create_private_file(file), "w") as stream:  # private, because secrets may be added to it
        stream.write(settings_file())
    hint = "" if file == DEFAULT_FILE else f" Name it in the environment: SIGNOFF_CONFIG={file}"
    out.print(f"{file} was written.{hint}")


def settings_file() -> str:
    """Return the text of a settings file in which each setting is a comment."""
    descriptions = attribute_docstrings(Settings)
    entries = [
        f"{_comment(descriptions[name])}# {name} = {_toml(field.default)}\n"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join([_comment(HEAD), *entries])


def attribute_docstrings(of: type) -> dict[str, str]:
    """Return the docstring of each attribute of a class."""
    body = cast("ast.ClassDef", ast.parse(inspect.getsource(of)).body[0]).body
    return {
        ast.unparse(field.target): inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _comment(text: str) -> str:
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, MAX_WIDTH - 2)]
    return "".join(f"# {line}\n" for line in lines)


def _toml(default: Any) -> str:
    """Return a default as TOML writes it; the texts, numbers, booleans and lists of the defaults look as in JSON."""
    if default is None:
        return "…"
    return json.dumps(str(default) if isinstance(default, Path) else default)
