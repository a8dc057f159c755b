"""A policy on the lowest log-probability of a token, with the small real model, on questions with known answers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.reviews.answers import read_answer
from support.live_server import Live, chat, live

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(1200)]

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Chad": "N'Djamena",
    "Mali": "Bamako",
    "Laos": "Vientiane",
    "Bhutan": "Thimphu",
    "Malta": "Valletta",
    "Fiji": "Suva",
    "Togo": "Lomé",
    "Oman": "Muscat",
    "Chile": "Santiago",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
}
NUMBERS = [(a, b) for a in (2, 7, 12, 19, 34) for b in (3, 8, 15, 27, 46)]
LIMIT = -1.0


def questions() -> Iterator[tuple[str, str]]:
    """Yield 50 questions with their answers."""
    for country, capital in CAPITALS.items():
        yield f"What is the capital of {country}? Answer with one word.", capital
    for one, two in NUMBERS:
        yield f"What is {one} + {two}? Answer with the number only.", str(one + two)


def area_under_curve(wrong: Sequence[float], right: Sequence[float]) -> float:
    """Return the probability that a wrong answer has a lower score than a right one; ties count as a half."""
    pairs = [(one < other) + (one == other) / 2 for one in wrong for other in right]
    return sum(pairs) / len(pairs)


def lowest_logprob(job: Job) -> float:
    """Return the lowest log-probability in the stored answer, computed apart from the server's own code."""
    tokens = json.loads(job.response or b"")["choices"][0]["logprobs"]["content"]
    return min(float(token["logprob"]) for token in tokens)


async def test_a_policy_holds_the_answers_that_the_model_is_unsure_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = dict(questions())
    async with live(tmp_path, log_before_answer=True) as server:
        admin, token = await server.token("admin"), await server.token()
        policy: dict[str, Any] = {
            "target": "local",
            "rules": [{"if": f"signals.logprob_min < {LIMIT}", "then": "hold", "queue": "unsure"}],
        }
        status, saved = await server.ask("PUT", "/api/policies/unsure", admin, json=policy)
        assert status == 200, saved
        for question in answers:
            await ask(server, token, question)
        jobs = await server.services.store.jobs.list(JobFilter(limit=100))
        assert len(jobs) == len(answers) == 50
        scores = {job.id: lowest_logprob(job) for job in jobs}
        held = {job.id for job in jobs if job.status == "human"}
        assert held == {job_id for job_id, score in scores.items() if score < LIMIT}
        for job in jobs:
            assert job.ruling is not None
            assert math.isclose(job.ruling.signals["signals.logprob_min"], scores[job.id])
        status, dry = await server.ask("POST", "/api/policies/unsure/dry-run", admin, json={"last": 50})
        assert (status, dry["answers"], dry["held"], dry["passed"]) == (200, 50, len(held), 50 - len(held))
        assert dry["missing"] == {}
    right = {job.id for job in jobs if is_right(job, answers)}
    area = area_under_curve(
        [score for job_id, score in scores.items() if job_id not in right],
        [score for job_id, score in scores.items() if job_id in right],
    )
    wrong_held = len(held - right)
    with capsys.disabled():
        sys.stdout.write(
            f"\n50 answers, {50 - len(right)} wrong; {len(held)} held, {wrong_held} of them wrong; "
            f"AUC of the lowest log-probability for wrong answers: {area:.3f}\n"
        )
    assert area > 0.5


async def ask(server: Live, token: str, question: str) -> None:
    """Ask the local model, and wait for no review."""
    body = chat(question, "local", max_tokens=24, temperature=0, seed=1, logprobs=True)
    status, answer = await server.ask(
        "POST", "/v1/chat/completions", token, json=body, headers={"prefer": "wait=0", "cache-control": "no-store"}
    )
    assert status in {200, 504}, answer


def is_right(job: Job, answers: dict[str, str]) -> bool:
    """Return True if the answer of the model names the right one."""
    question = json.loads(job.body)["messages"][0]["content"]
    words = read_answer(job.response or b"").values["text"].lower()
    return answers[question].lower() in words
