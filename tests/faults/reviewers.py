"""Reviewers that compete for the same held jobs, and are sometimes late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from faults.clients import Line
from faults.cluster import Member
from faults.history import History

PAUSE_SECONDS = 0.05
AT_ONCE = 4
CROWD = 20
"""With at most this many held jobs, all reviewers take the first ones, and so compete."""
LATE_SECONDS = 1.0
MOST_ROUNDS = 3
STATUS = {"approve": "success", "reject": "fail", "redo": "bot"}


class Reviewing:
    """A reviewer who lists held jobs and sends a verdict on some, each for the round that was listed."""

    def __init__(
        self, email: str, line: Line, servers: Sequence[Member], history: History, random_float: Random
    ) -> None:
        self._email, self._line, self._servers, self._history, self._random_float = (
            email,
            line,
            servers,
            history,
            random_float,
        )

    async def review_for_ever(self) -> None:
        """Send verdicts until cancelled."""
        while True:
            server = self._random_float.choice(self._servers)
            status, held, _ = await self._line.ask(server, "GET", "/jobs?status=human&limit=40")
            if status == 200 and held:
                for job in (
                    self._random_float.sample(held, min(len(held), AT_ONCE)) if len(held) > CROWD else held[:AT_ONCE]
                ):
                    await self._judge(job)
            else:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _judge(self, job: dict[str, Any]) -> None:
        """Send a verdict, sometimes so late that the job is already in another round."""
        if self._random_float.random() < 0.1:
            await asyncio.sleep(LATE_SECONDS * self._random_float.random())
        verdict = self._verdict(job["round"])
        told = {
            "id": job["job_id"],
            "status": STATUS[verdict],
            "round": job["round"],
            "reason": f"so says {self._email}",
        }
        if verdict == "approve" and self._random_float.random() < 0.3:
            told["response"] = {"edited": job["payload"]["messages"][0]["content"], "by": self._email}
        status, _, _ = await self._line.ask(self._random_float.choice(self._servers), "POST", "/reviewJob", told)
        about = {"job": job["job_id"], "round": job["round"], "reviewer": self._email, "verdict": verdict}
        self._history.tell("reviewed", status=status, **about)

    def _verdict(self, round_: int) -> str:
        weights = {"approve": 5, "reject": 2, "redo": 3 if round_ < MOST_ROUNDS else 0}
        return self._random_float.choices(list(weights), list(weights.values()))[0]
