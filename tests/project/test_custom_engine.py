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
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def installed(folder: Path, code: str, name: str = "shout") -> str:
    """Install the page's package as pip does, but with `code`, under the kind `name`; return its folder."""
    [(group, points)] = tomllib.loads(block("toml"))["project"]["entry-points"].items()
    described = folder / "shout-1.0.dist-info"
    described.mkdir(parents=True)
    (folder / "shout.py").write_text(code)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[{group}]\n{name} = {points['shout']}\n")
    return str(folder)


def test_the_page_s_own_kind_is_installed_and_asked(tmp_path: Path) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 30
    environment = clean_environment(tmp_path / "data", PYTHONPATH=installed(tmp_path / "site", code))
    port = free_port()
    assert signoff(environment, "model", "add", "loud", "--kind", "shout") == "loud is registered.\n"
    with served(environment, tmp_path, port):
        token = first_token(tmp_path)
        body = {"model": "loud", "messages": [{"role": "user", "content": "hello"}]}
        told = ask(port, "/v1/chat/completions", token, body)
        assert told["choices"][0]["message"]["content"] == "HELLO!"
        # the kind also works at other doors, and for a model that is registered over HTTP
        ask(port, "/api/models", token, {"name": "louder", "kind": "shout", "url": "http://x"})
        told = ask(port, "/post/predict?id=louder", token, {"input": "hello"})
        assert told["choices"][0]["message"]["content"] == "HELLOhttp://x"


@pytest.mark.parametrize(
    ("code", "name", "complaint"),
    [
        ("import nothing_that_there_is", "shout", "No module named 'nothing_that_there_is'"),
        ("class Other: ...", "shout", "ShoutEngine"),
        ("class ShoutEngine: ...", "echo", "The kind echo of shout:ShoutEngine exists already"),
    ],
)
def test_one_that_cannot_be_used_keeps_the_server_from_starting(
    code: str, name: str, complaint: str, tmp_path: Path
) -> None:
    environment = clean_environment(tmp_path / "data", PYTHONPATH=installed(tmp_path / "site", code, name))
    told = subprocess.run(
        (*SIGNOFF, "serve", "--port", "0"), env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert told.returncode == 1
    assert complaint in told.stderr
    assert "Traceback" not in told.stderr
