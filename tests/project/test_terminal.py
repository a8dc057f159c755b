"""Texts that commands print and servers log: none of a model or a user controls the terminal that shows it."""

import io
from typing import Any

import pytest

from signoff.commands.terminal import Terminal, table_of
from signoff.infra.logging import _rendering as rendering

CONTROLS = {
    "escape": "\x1b[2J",
    "C1": "\x9b2J",
    "bell": "\x07",
    "return": "\rforged",
    "direction": "\u202e",
    "isolate": "\u2067",
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_commands_print_no_character_that_controls_the_terminal(control: str) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, markup=False, width=200)
    table = table_of(f"head{control}", caption=f"caption{control}")
    table.add_row(f"cell{control}")
    terminal.print(table)
    terminal.print(f"line{control}", style="red")
    terminal.print(f"prompt{control}: ", end="")
    shown = file.getvalue()
    assert control[0] not in shown
    for word in ("head", "caption", "cell", "line", "prompt"):
        assert f"{word}�{control[1:]}" in shown


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_the_log_as_text_has_no_character_that_controls_the_terminal(control: str) -> None:
    event: Any = {"event": f"library{control}", "level": "info", "path": f"/a{control}", "names": [control]}
    for processor in rendering("text"):
        event = processor(None, "info", event)
    assert "library�" in event
    assert "/a�" in event
    assert control[0] not in event
