"""Prompts, functions and pipelines for tests of runs: saved and called over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fakes.echoing import EchoingModel
from support.live_server import Live, live
from support.pipeline_cases import PIPELINES


@contextlib.asynccontextmanager
async def composing(tmp_path: Path, upstream: EchoingModel, **settings: Any) -> AsyncIterator[Live]:
    """Yield a server with the functions of the cases and a default model at `upstream`."""
    folder = tmp_path / "functions"
    folder.mkdir(exist_ok=True)
    (folder / "custom_cases.py").write_text("\n\n".join(PIPELINES["functions"].values()))
    async with live(tmp_path, functions_dir=folder, **settings) as server:
        await server.model("m", kind="openai", url=upstream.url, default=True)
        status, synced = await server.ask("POST", "/api/functions/sync", await server.token("admin"))
        assert status == 200, synced
        yield server


async def save(server: Live, token: str, kind: str, name: str, body: str, **more: Any) -> int:
    """Create a prompt or pipeline, and return its id."""
    status, item = await server.ask("POST", f"/api/{kind}s", token, json={"name": name, "body": body} | more)
    assert status == 201, item
    return item["id"]


async def save_prompts(server: Live, token: str) -> None:
    """Create the prompts of the cases."""
    for name, body in PIPELINES["prompts"].items():
        await save(server, token, "prompt", name, body)


async def call(server: Live, token: str | None, name: str | int, args: Any, **more: Any) -> tuple[int, Any]:
    """Call a pipeline; return the status and the JSON of the response."""
    key = "pipeline_name" if isinstance(name, str) else "pipeline_id"
    return await server.ask("POST", "/api/pipeline/call", token, json={key: name, "args": args}, **more)


async def submit(server: Live, token: str, name: str, args: Any) -> str:
    """Submit a run of a pipeline for later; return the id of its job."""
    status, job = await server.ask("POST", "/api/jobs", token, json={"target": name, "path": "/predict", "body": args})
    assert status == 202, job
    return job["job_id"]


async def log(server: Live, token: str, job_id: str) -> list[dict[str, Any]]:
    """Return the log of a run, with an entry for each call."""
    status, response = await server.ask("GET", f"/api/jobs/{job_id}/run", token)
    assert status == 200, response
    return response["data"]
