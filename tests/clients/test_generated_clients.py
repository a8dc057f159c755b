"""Clients that are generated from the OpenAPI document: they compile, and the one in Python calls a server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.live_server import Live, live

pytestmark = [pytest.mark.anyio, pytest.mark.long]
FOLDER = Path(__file__).parent
# Members with a default may be left out of a body.
OPTIONS = ["--default-non-nullable", "false"]
# Lists of rows in JSON Lines are files for this generator.
CONFIG = """\
post_hooks: []
content_type_overrides:
  application/x-ndjson: application/octet-stream
  application/x-jsonl: application/octet-stream
"""


async def document(server: Live, folder: Path) -> Path:
    """Write the document of a server, and return the file."""
    _, payload = await server.ask("GET", "/schema/openapi.json")
    path = folder / "openapi.json"
    path.write_text(json.dumps(payload))
    return path


async def output_of(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command, and return what it prints; fail with it."""
    environment = os.environ | {"PYTHONPATH": str(folder)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    result = await asyncio.to_thread(run)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


async def test_a_client_in_python_is_generated_without_a_warning_and_submits_a_job(python: str, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(CONFIG)
    async with live(tmp_path) as server:
        path = await document(server, tmp_path)
        command = [Path(python).with_name("openapi-python-client"), "generate", "--path", path, "--meta", "none"]
        target = tmp_path / "signoff_client"
        await output_of([*command, "--config", "config.yml", "--output-path", target, "--fail-on-warning"], tmp_path)
        await output_of([python, "-m", "compileall", "-q", target], tmp_path)
        token = await server.token()
        printed = await output_of([python, FOLDER / "generated_client.py", server.url, token], tmp_path)
    assert json.loads(printed) == {"status": "success", "text": "one two"}


async def test_types_for_typescript_are_generated_and_refuse_what_is_wrong(node: Path, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        path = await document(server, tmp_path)
    bin_folder = node / "node_modules" / ".bin"
    await output_of([bin_folder / "openapi-typescript", path, "-o", node / "signoff.d.ts", *OPTIONS], node)
    compiler = [bin_folder / "tsc", "--noEmit", "--strict", "--target", "es2022", "--moduleResolution", "bundler"]
    await output_of([*compiler, "--module", "esnext", "typed_client.ts", "signoff.d.ts"], node)
    wrong = (FOLDER / "typed_client.ts").read_text().replace("// @ts-expect-error", "//")
    (node / "wrong_client.ts").write_text(wrong)
    with pytest.raises(AssertionError, match="TS2"):
        await output_of([*compiler, "--module", "esnext", "wrong_client.ts"], node)
