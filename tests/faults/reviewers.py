"""Reviewers that compete for the same held jobs, and are sometimes late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from faults.clients import Client
from faults.cluster import Member
from faults.history import History

PAUSE_SECONDS = 0.05
BATCH_SIZE = 4
MAX_CONTESTED = 20
"""With at most this many held jobs, all reviewers take the first ones, and so compete."""
LATE_SECONDS = 1.0
MAX_ROUNDS = 3
STATUS = {"approve": "success", "reject": "fail", "redo": "bot"}


class Reviewer:
    """A reviewer who lists held jobs and sends a verdict on some, each for the round that was listed."""

    def __init__(self, email: str, client: Client, servers: Sequence[Member], history: History, rng: Random) -> None:
        self._email, self._client, self._servers, self._history, self._rng = (
            email,
            client,
            servers,
            history,
            rng,
        )

    async def review_forever(self) -> None:
        """Send verdicts until cancelled."""
        while True:
            server = self._rng.choice(self._servers)
            status, jobs, _ = await self._client.request(server, "GET", "/jobs?status=human&limit=40")
            if status == 200 and jobs:
                for job in (
                    self._rng.sample(jobs, min(len(jobs), BATCH_SIZE))
                    if len(jobs) > MAX_CONTESTED
                    else jobs[:BATCH_SIZE]
                ):
                    await self._send_verdict(job)
            else:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _send_verdict(self, job: dict[str, Any]) -> None:
        """Send a verdict, sometimes so late that the job is already in another round."""
        if self._rng.random() < 0.1:
            await asyncio.sleep(LATE_SECONDS * self._rng.random())
        verdict = self._verdict(job["round"])
        payload = {
            "id": job["job_id"],
            "status": STATUS[verdict],
            "round": job["round"],
            "reason": f"so says {self._email}",
        }
        if verdict == "approve" and self._rng.random() < 0.3:
            payload["response"] = {"edited": job["payload"]["messages"][0]["content"], "by": self._email}
        status, _, _ = await self._client.request(self._rng.choice(self._servers), "POST", "/reviewJob", payload)
        fields = {"job": job["job_id"], "round": job["round"], "reviewer": self._email, "verdict": verdict}
        self._history.record("reviewed", status=status, **fields)

    def _verdict(self, round_: int) -> str:
        weights = {"approve": 5, "reject": 2, "redo": 3 if round_ < MAX_ROUNDS else 0}
        return self._rng.choices(list(weights), list(weights.values()))[0]
