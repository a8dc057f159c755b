"""The README's examples do what it says, on a real server with the model it comes with."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from live import live

pytestmark = pytest.mark.anyio
README = (Path(__file__).parent.parent / "README.md").read_text()


async def test_the_first_signed_off_answer_comes_as_the_readme_says(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        job_id = "01a1fbeb-…"
        for command, expected in examples():
            shell = command.replace("http://localhost:8000", server.url).replace("01a1fbeb-…", job_id)
            if "reviewJob" in command:
                await server.job_when(token, job_id, lambda job: job["status"] == "human")
            printed = await run(f"TOKEN={token}; {shell}")
            assert re.fullmatch(pattern(expected), printed), printed
            job_id = match.group(1) if (match := re.search(r'"job_id":"([^"]+)"', printed)) else job_id


async def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    async with live(tmp_path) as server:
        names = {"TOKEN": await server.token()}
        await asyncio.to_thread(exec, code.group(1).replace("http://localhost:8000", server.url), names)
        assert names["answer"].choices[0].message.content  # type: ignore[attr-defined]


def examples() -> list[tuple[str, str]]:
    """Every command with a `$` before it, and what it prints."""
    blocks = re.findall(r"```console\n(\$.*?)```", README, re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    return [tuple(re.split(r"(?<!\\)\n", part.strip(), maxsplit=1)) for part in parts]  # type: ignore[misc]


def pattern(expected: str) -> str:
    """What is printed, where `…` is anything."""
    return ".*".join(re.escape(piece) for piece in expected.replace("01a1fbeb-…", "…").split("…"))


async def run(command: str) -> str:
    shell = await asyncio.create_subprocess_exec("bash", "-c", f"{command} -s", stdout=asyncio.subprocess.PIPE)
    printed, _ = await shell.communicate()
    return printed.decode().strip()
