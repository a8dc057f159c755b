"""The engine of docs/how-to/write-a-custom-engine.md: the text of the page is installed and called."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.processes import SIGNOFF, ask, clean_environment, first_token, free_port, served, signoff

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-custom-engine.md"


def block(language: str) -> str:
    """Return the first code block of `language` on the page."""
    match = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def install(folder: Path, code: str, name: str = "shout") -> str:
    """Install the page's package as pip does, but with `code`, under the kind `name`; return its folder."""
    [(group, points)] = tomllib.loads(block("toml"))["project"]["entry-points"].items()
    metadata = folder / "shout-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "shout.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {points['shout']}\n")
    return str(folder)


def test_the_engine_of_the_page_is_installed_and_called(tmp_path: Path) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 30
    environment = clean_environment(tmp_path / "data", PYTHONPATH=install(tmp_path / "site", code))
    port = free_port()
    assert signoff(environment, "model", "add", "loud", "--kind", "shout") == "loud is registered.\n"
    with served(environment, tmp_path, port):
        token = first_token(tmp_path)
        body = {"model": "loud", "messages": [{"role": "user", "content": "hello"}]}
        response = ask(port, "/v1/chat/completions", token, body)
        assert response["choices"][0]["message"]["content"] == "HELLO!"
        # the kind also works at other doors, and for a model that is registered over HTTP
        ask(port, "/api/models", token, {"name": "louder", "kind": "shout", "url": "http://x"})
        response = ask(port, "/post/predict?id=louder", token, {"input": "hello"})
        assert response["choices"][0]["message"]["content"] == "HELLOhttp://x"


@pytest.mark.parametrize(
    ("code", "name", "complaint"),
    [
        ("import nothing_that_there_is", "shout", "No module named 'nothing_that_there_is'"),
        ("class Other: ...", "shout", "ShoutEngine"),
        ("class ShoutEngine:\n    async def answer(self, *_):\n        yield b''", "shout", "yields its answer"),
        ("class ShoutEngine: ...", "echo", "The kind echo of shout:ShoutEngine exists already"),
    ],
)
def test_an_unusable_engine_keeps_the_server_from_starting(
    code: str, name: str, complaint: str, tmp_path: Path
) -> None:
    environment = clean_environment(tmp_path / "data", PYTHONPATH=install(tmp_path / "site", code, name))
    completed = subprocess.run(
        (*SIGNOFF, "serve", "--port", "0"), env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert completed.returncode == 1
    assert complaint in completed.stderr
    assert "Traceback" not in completed.stderr
