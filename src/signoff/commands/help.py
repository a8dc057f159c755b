"""Help of commands, in the form of `gh` and `uv`: `--port <PORT>`, flags without a value, and examples."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


class Command(TyperCommand):
    """Command whose help names the values of its options and arguments."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with the names of their values."""
        return _with_value_names(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line; an argument that is needed has no braces."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """Group of commands, whose help names the values of its options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with the names of their values."""
        return _with_value_names(super().get_params(ctx))


class CommandGroup(typer.Typer):
    """Commands of one kind.

    Args:
        text: Help of the group; empty if its commands are those of `signoff` itself.
        panel: Heading under which the help of `signoff` lists the group or its commands.
    """

    def __init__(self, text: str = "", *, panel: str | None = None) -> None:
        super().__init__(help=text or None, cls=Group, add_completion=False, no_args_is_help=bool(text))
        self.panel = panel
        """Heading under which the help of `signoff` lists the commands; None for the general one."""
        self._later = list[tuple[str, str | None, tuple[str, ...]]]()

    def add(self, group: "CommandGroup", name: str | None = None) -> None:
        """Add the commands of `group`, under a name unless they are commands of this group."""
        self.add_typer(group, name=name, rich_help_panel=group.panel)

    def add_later(self, path: str, *commands: str, name: str | None = None) -> None:
        """Add a group once `add_needed` needs it, so that its module is imported only then.

        Args:
            path: `MODULE:VARIABLE` of the group.
            commands: Names of its commands, if they are commands of this group.
            name: Name of the group otherwise.
        """
        self._later.append((path, name, commands))

    def add_needed(self, arguments: Sequence[str] = ()) -> None:
        """Add the groups that the command line `arguments` needs: that of its command, or all for help and errors."""
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        needed = [each for each in self._later if command is not None and command in (each[1], *each[2])] or self._later
        self._later = [each for each in self._later if each not in needed]
        for path, name, _ in needed:
            module, _, variable = path.partition(":")
            self.add(getattr(import_module(module), variable), name)

    def register(self, name: str, *examples: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers a function as a command.

        Args:
            name: Name of the command.
            examples: Command lines for its help; at least one.
        """
        title = "Example" if len(examples) == 1 else "Examples"
        epilog = "\n\n".join([f"{title}:", *examples])
        return self.command(name, cls=Command, epilog=epilog, rich_help_panel=self.panel)


def _with_value_names(params: Sequence[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            name = "N" if param.bare_type() in {"int", "float"} else param.opts[0].rpartition("-")[2].upper()
            param.metavar = "" if param.is_flag else f"<{name}>"
        elif isinstance(param, TyperArgument):
            cast("Any", param).display_type_rich = _no_type
    return list(params)


def _no_type(ctx: Any) -> None:
    """Return no text for the type of an argument, as its name and its help say enough."""
    del ctx
