"""A program that owns models as a server does: it calls each model once, reports that, and runs until it is killed."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines.subprocess import SubprocessEngine
from signoff.engines.upstream import UpstreamClient

ASK = ModelRequest(path="/v1/chat/completions", body=b"{}", target="")


class _NoStream:
    async def send(self, events: Sequence[bytes]) -> None:
        raise AssertionError  # none of the models streams


async def main(run_dir: Path, models: list[Model]) -> None:
    upstream = UpstreamClient(now=time.time)
    await upstream.start()
    engine = SubprocessEngine(upstream, run_dir)
    await engine.start()
    for model in models:
        sys.stdout.buffer.write(await engine.answer(model, ASK, _NoStream()) or b"")
        sys.stdout.buffer.write(b"\n")
        sys.stdout.flush()
    await asyncio.sleep(600)


asyncio.run(main(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=list[Model])))
