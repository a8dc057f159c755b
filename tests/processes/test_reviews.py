"""Reviewers who race for the same answers at two servers on one database, and the terminal at a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import subprocess
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.processes import SIGNOFF, WAIT_SECONDS, ask, free_port, migrated_environment, run_many, served, until

pytestmark = pytest.mark.anyio
ITEMS, ATTEMPTS = 50, 200
REVIEWERS = ("ann", "bob", "cyd", "dan")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_of_racing_verdicts_each_answer_gets_one_and_every_loser_learns_whose(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # given two servers on one database, and held answers
    more = {} if kind == "sqlite" else {"SIGNOFF_DATABASE_URL": request.getfixturevalue("postgres_url")}
    environment = migrated_environment(tmp_path / "data", SIGNOFF_RELEASE_AFTER_SECONDS="0", **more)
    tokens = made_tokens(environment)
    ports = [free_port(), free_port()]
    with served(environment, tmp_path, ports[0]), served(environment, tmp_path, ports[1], "--no-work"):
        job_ids = held_jobs(ports[0], tokens["ursula"], ITEMS)
        # when reviewers give different verdicts on all of them at the same time
        rng = random.Random(7)
        attempts = [
            (job_ids[number % ITEMS], rng.choice(REVIEWERS), rng.choice(VERDICTS)) for number in range(ATTEMPTS)
        ]
        rng.shuffle(attempts)

        def attempt(number: int) -> tuple[str, str, int, Any]:
            job_id, reviewer, verdict = attempts[number]
            path = f"/api/reviews/{job_id}/decide"
            return (job_id, reviewer, *sent(ports[number % 2], path, tokens[reviewer], {"round": 1} | verdict))

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(attempt, range(ATTEMPTS)))
        # then each has one decision, and each loser is told whose it is
        winners = {job_id: reviewer for job_id, reviewer, status, _ in results if status == 200}
        losers = [(job_id, status, answer) for job_id, _, status, answer in results if status != 200]
        assert sorted(winners) == sorted(job_ids)
        assert len(losers) == ATTEMPTS - ITEMS
        for job_id, status, answer in losers:
            assert status == 409
            assert f"{winners[job_id]}@x.org decided: " in answer["detail"], answer
        for job_id in job_ids:
            events = ask(ports[1], f"/api/jobs/{job_id}/events", tokens["ann"])["data"]
            assert [event["verb"] for event in events].count("decide") == 1


VERDICTS: list[dict[str, Any]] = [
    {"verdict": "approve"},
    {"verdict": "approve", "response": "Edited"},
    {"verdict": "reject", "reason": "wrong"},
]


def made_tokens(environment: dict[str, str]) -> dict[str, str]:
    """Return new tokens of a user and of the reviewers, by name."""
    people = {"ursula": "user"} | dict.fromkeys(REVIEWERS, "reviewer")
    commands = [["token", "create", f"{name}@x.org", "--role", role, "--quiet", ""] for name, role in people.items()]
    results = run_many(environment, ["migrate", ""], *commands)[1:]
    return dict(zip(people, (output.strip() for _, output, _ in results), strict=True))


def held_jobs(port: int, token: str, number: int) -> list[str]:
    """Return the ids of new jobs, once their answers are held."""
    bodies = [{"model": "echo", "messages": [{"role": "user", "content": f"Hello {each}"}]} for each in range(number)]
    job_ids = [ask(port, "/enqueue", token, body)["job_id"] for body in bodies]
    until(lambda: len(ask(port, "/jobs?status=human&limit=1000", token)) == number or None)
    return job_ids


def sent(port: int, path: str, token: str, body: Any) -> tuple[int, Any]:
    """Send a POST; return the status and the JSON of the response."""
    try:
        return 200, ask(port, path, token, body)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Terminal:
    """`signoff review` at a pseudo-terminal."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._leader, follower = pty.openpty()
        self._process = subprocess.Popen(
            (*SIGNOFF, "review"), stdin=follower, stdout=follower, stderr=follower, env=environment, close_fds=True
        )
        os.close(follower)
        self._text = ""

    def press(self, keys: str) -> None:
        """Type keys, as soon as the keys of the command are shown."""
        self.read_until("q quit")
        os.write(self._leader, keys.encode())

    def read_until(self, text: str) -> str:
        """Return what is printed up to `text`, since the last call."""
        while text not in self._text:
            ready, _, _ = select.select([self._leader], [], [], WAIT_SECONDS)
            assert ready, f"{text!r} did not come: {self._text}"
            try:
                self._text += os.read(self._leader, 65536).decode(errors="replace")
            except OSError:  # the process has ended
                break
        before, _, self._text = self._text.partition(text)
        return before

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was printed."""
        text = self.read_until("\0")
        code = self._process.wait(WAIT_SECONDS)
        os.close(self._leader)
        return code, text


def test_a_reviewer_edits_approves_sends_back_rejects_and_undoes_by_keys_alone(tmp_path: Path) -> None:
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "Goodbye 0\\n" > "$1"\n')
    editor.chmod(0o700)
    environment = migrated_environment(
        tmp_path / "data", SIGNOFF_RELEASE_AFTER_SECONDS="10", EDITOR=str(editor), TERM="xterm-256color"
    )
    token = made_tokens(environment)["ursula"]
    port = free_port()
    with served(environment, tmp_path, port):
        job_ids = held_jobs(port, token, 4)
        terminal = Terminal(environment)
        terminal.press("e")
        shown = terminal.read_until("+ Goodbye 0")
        assert re.search(r"\x1b\[31m\s*- Hello 0", shown)
        terminal.press("a")
        terminal.read_until("Hello 1")
        terminal.press("r")
        terminal.read_until("Instruction")
        os.write(terminal._leader, b"Be kind.\n")
        terminal.read_until("Hello 2")
        terminal.press("x")
        terminal.read_until("Reason")
        os.write(terminal._leader, b"rude\n")
        terminal.read_until("Hello 3")
        terminal.press("u")  # the rejection
        terminal.read_until("waits for a review again")
        terminal.read_until("Hello 2")
        terminal.press("s")
        terminal.read_until("Hello 3")
        terminal.press("q")
        assert terminal.end()[0] == 0
        first = until(lambda: status_of(port, token, job_ids[0], "success"))
        assert first["response"]["choices"][0]["message"]["content"] == "Goodbye 0"
        second = until(lambda: status_of(port, token, job_ids[1], "human"))
        assert [each["content"] for each in second["payload"]["messages"]] == ["Hello 1", "Hello 1", "Be kind."]
        assert status_of(port, token, job_ids[2], "human") is not None
        assert status_of(port, token, job_ids[3], "human") is not None


def status_of(port: int, token: str, job_id: str, status: str) -> dict[str, Any] | None:
    """Return the job if it has the status."""
    job = ask(port, f"/job?id={job_id}", token)
    is_again = status != "human" or len(job["payload"]["messages"]) != 1 or job["round"] > 0
    return job if job["status"] == status and is_again else None
