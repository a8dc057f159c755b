"""Webhook receiver that often fails, and records each message and its response."""

from __future__ import annotations

import asyncio
import hashlib
from random import Random

from fakes.http_server import FakeServer, RecordedRequest, Reply, raw
from faults.history import History

SLOW_SECONDS = 3.0


class FailingReceiver(FakeServer):
    """A server that accepts four of five messages."""

    def __init__(self, history: History, rng: Random) -> None:
        super().__init__()
        self._history, self._rng = history, rng

    async def reply(self, request: RecordedRequest) -> Reply:
        payload = request.json()
        fields = {"id": request.headers["webhook-id"], "job": payload["data"]["job_id"], "kind": payload["type"]}
        behaviour = self._rng.choices(["take", "fail", "cut", "slow"], [80, 10, 7, 3])[0]
        is_taken = behaviour == "take"
        self._history.record("hooked", **fields, digest=hashlib.sha256(request.body).hexdigest()[:16], taken=is_taken)
        if behaviour == "cut":
            return raw(end="close")
        if behaviour == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        return Reply(status=200 if is_taken else 500)
