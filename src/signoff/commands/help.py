"""Help of commands, in the form of `gh` and `uv`: `--port <PORT>`, flags without a value, and examples."""

from collections.abc import Callable, Sequence
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
        self._parts = dict[Callable[[], None], tuple[str, ...]]()
        self._added = set[Callable[[], None]]()

    def add(self, group: "CommandGroup", name: str | None = None) -> None:
        """Add the commands of `group`, under a name unless they are commands of this group."""
        self.add_typer(group, name=name, rich_help_panel=group.panel)

    def part(self, *names: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Return a decorator for a function that imports and adds the commands `names`; `add_parts` calls it."""

        def keep(add: Callable[[], None]) -> Callable[[], None]:
            self._parts[add] = names
            return add

        return keep

    def add_parts(self, arguments: Sequence[str] = ()) -> None:
        """Add the commands that the command line `arguments` needs: those of a part, or all for the help and errors."""
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        for add in [add for add, names in self._parts.items() if command in names] or [*self._parts]:
            if add not in self._added:
                self._added.add(add)
                add()

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
