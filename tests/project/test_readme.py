"""The examples of the README, the quick start, the tutorials and the how-to guides, run on real servers.

A `console` block whose commands begin with `$ ` is run, and what it prints must match the page, where `…` stands for
anything. A `python` block of a tutorial is run too, unless it is a file; the `text` block after it has its output.
A `bash` block is not run, but its `signoff` commands are parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from signoff.cli import cli
from support.live_server import Live, live

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
GUIDES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "how-to").glob("*.md"))
PAGES = ["README.md", "docs/tutorial.md", *GUIDES]
TOPICS = "docs/tutorials/topics.md"
TUTORIALS = sorted({str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "tutorials").glob("*.md")} - {TOPICS})
FILE = re.compile(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"```(console|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
BROKER = "amqp://guest:guest@127.0.0.1:5672/"
JOB = "01a1fbeb-…"
WAIT_SECONDS = 60.0


def examples(page: str) -> list[tuple[str, str]]:
    """Return each command of `page` that has a `$` before it, with the output that the page shows."""
    blocks = re.findall(r"```console\n(\$.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [example for block in blocks for example in split(block)]


def split(block: str) -> list[tuple[str, str]]:
    """Return the commands of a block with their output."""
    parts = [part.strip() for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    pairs = (re.split(r"(?<!\\)\n", part, maxsplit=1) for part in parts)
    return [(command, "".join(output)) for command, *output in pairs]


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
async def test_the_examples_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    async with live(tmp_path) as server:
        await run_examples(server, tmp_path, await server.token("admin"), examples(page))


async def test_the_tutorials_do_what_they_say(tmp_path: Path) -> None:
    assert len(TUTORIALS) > 6
    async with live(tmp_path) as server:
        token = await server.token("admin")
        for page in TUTORIALS:
            await follow(page, server, tmp_path, token)


async def test_the_tutorial_of_topics_does_what_it_says(rabbitmq_url: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await follow(TOPICS, server, tmp_path, await server.token("admin"), {BROKER: rabbitmq_url})


async def follow(page: str, server: Live, folder: Path, token: str, addresses: dict[str, str] | None = None) -> None:
    """Run the blocks of a tutorial in their order, with other addresses in the place of those that it names."""
    write_files(page, folder)
    names: dict[str, Any] = {"TOKEN": token}
    text = FILE.sub("", (ROOT / page).read_text())
    for address, other in {"http://localhost:8000": server.url, **(addresses or {})}.items():
        text = text.replace(address, other)
    blocks = BLOCK.findall(text)
    assert blocks, page
    job_id = "no-job-yet"
    for kind, block, expected in blocks:
        if kind == "console":
            job_id = await run_examples(server, folder, token, split(block), job_id)
        else:
            printed = await asyncio.to_thread(output_of, block, names)
            assert printed == expected, f"{page}: {block}"


def output_of(program: str, names: dict[str, Any]) -> str:
    """Run a program with these names, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, names)
    return printed.getvalue()


def write_files(page: str, folder: Path) -> None:
    """Write the programs of a page that have the name of a file."""
    for name, program in FILE.findall((ROOT / page).read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(program)


async def run_examples(
    server: Live, folder: Path, token: str, commands: list[tuple[str, str]], job_id: str = "no-job-yet"
) -> str:
    """Run commands one after the other, in which the id of the newest job replaces that of the page; return that id."""
    for command, expected in commands:
        shell = command.replace("http://localhost:8000", server.url).replace(JOB, job_id)
        shell = shell.replace("?wait=5", "?wait=1")  # a held job takes all of that time
        printed = await printed_by(server, folder, f"TOKEN={token}; {shell}", expected)
        if match := re.match(r'\{("status":"success",)?"job_id":"([^"]+)"', printed):
            job_id = match[2]
    return job_id


def commands_of_signoff() -> list[tuple[str, str]]:
    """Return each command `signoff …` in a code block, with its page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [(page, block) for page in pages for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [(page, line) for page, block in blocks for line in map(str.strip, block.replace("\\\n", "").splitlines())]
    matches = [(page, re.search(r"(?:^|[$|/] ?|\w=\S+ )signoff( [a-z].*)", line)) for page, line in lines]
    return [(str(page.relative_to(ROOT)), match[1]) for page, match in matches if match]


def test_each_command_on_a_page_can_be_parsed() -> None:
    cli.add_needed()
    commands = commands_of_signoff()
    assert len(commands) > 20
    for page, words in commands:
        command: Any = typer.main.get_command(cli)
        arguments = shlex.split(words.replace("…", "x"), comments=True)
        while hasattr(command, "commands"):
            assert arguments[0] in command.commands, f"{page}: {words}"
            command = command.commands[arguments.pop(0)]
        command.make_context("signoff", arguments)  # raises for what the command does not take


async def printed_by(server: Live, folder: Path, command: str, expected: str) -> str:
    """Return what `command` prints. Repeat a command that waits for a job until it prints what is expected."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        code, printed = await run(server, folder, command)
        if code == 0 and re.fullmatch(pattern(expected), printed, re.DOTALL):
            return printed
        if "?wait=" not in command or asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"{command}\nended with {code} and printed:\n{printed}\nbut the page has:\n{expected}")


def pattern(expected: str) -> str:
    """Return a pattern for the output, where `…` is anything; a page may show no output at all."""
    pieces = expected.replace(JOB, "…").split("…")
    return ".*".join(re.escape(piece) for piece in pieces) if expected else ".*"


async def run(server: Live, folder: Path, command: str) -> tuple[int, str]:
    """Run `command` in `folder` with the data of `server`; return its exit code and output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SIGNOFF_DATA_DIR": str(folder / "data"),
        "COLUMNS": "200",
    }
    quiet = re.sub(r"\bcurl ", "curl -s ", command)
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        quiet,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await shell.communicate()
    return shell.returncode or 0, printed.decode().strip()


async def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    async with live(tmp_path) as server:
        names = {"TOKEN": await server.token()}
        await asyncio.to_thread(exec, code.group(1).replace("http://localhost:8000", server.url), names)
        assert names["answer"].choices[0].message.content  # type: ignore[attr-defined]
