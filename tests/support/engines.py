"""Engines for subprocess models; several with one folder act as several server processes of a host."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from signoff.engines.subprocess import SubprocessEngine
from signoff.engines.upstream import UpstreamClient


@asynccontextmanager
async def an_engine(run_dir: Path, log_lines: list[str] | None = None, **more: Any) -> AsyncIterator[SubprocessEngine]:
    """Yield an engine on the shared folder `run_dir`, which appends the log lines of its models to `log_lines`."""
    lines = [] if log_lines is None else log_lines
    upstream = UpstreamClient(now=time.time)
    await upstream.start()
    engine = SubprocessEngine(upstream, run_dir, on_log_line=lambda _, line: lines.append(line), **more)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await upstream.close()
