"""Simulated runs: streams of answers that drift, and callers and models that work against the budget."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from error_budgets.corpus import Answer
from error_budgets.processes import Deployment, Tally
from signoff.core.reviews.budget_period import terms_of
from signoff.core.reviews.rules import Budget

ANSWERS, BEFORE_DRIFT, HELD_SHARE = 4_200, 1_000, 0.1
DRIFT_BUDGET = Budget(answers=ANSWERS, share=0.05, audit_rate=0.1)
# It allows 100 wrong answers: each adversary would get more than these through a gate that does not close.
ADVERSARY_BUDGET, ADVERSARY_ANSWERS = Budget(answers=2_000, share=0.05, audit_rate=0.1), 300
ROUNDS, QUESTIONS, CALLERS = 5, 25, 6
MAX_SHARE_OVER = 0.05
DRIFTS = ("tweets", "products", "films", "editorials", "mixture")
Corpora = Mapping[str, Sequence[Answer]]


def runs_over(tallies: Sequence[Tally], budget: Budget) -> int:
    """Return the number of runs in which more wrong answers have left than the budget allows."""
    return sum(tally.wrong_delivered > terms_of(budget).allowed for tally in tallies)


def is_broken(tallies: Sequence[Tally], budget: Budget) -> bool:
    """Return True if more runs are over the budget than its confidence of 95 % lets expect."""
    return runs_over(tallies, budget) > MAX_SHARE_OVER * len(tallies)


def threshold_of(tweets: Sequence[Answer]) -> float:
    """Return the confidence below which a tenth of the tweets are; the rule holds these."""
    return sorted(answer.confidence for answer in tweets)[round(HELD_SHARE * len(tweets))]


def stream(corpora: Corpora, drift: str, chance: random.Random) -> list[Answer]:
    """Return the answers of a run in random order: tweets, and after BEFORE_DRIFT of them those of another kind."""
    tweets = chance.sample(corpora["tweets"], len(corpora["tweets"]))
    if drift == "tweets":
        return tweets
    names = ("products", "films", "editorials") if drift == "mixture" else (drift,)
    shuffled = [chance.sample(corpora[name], len(corpora[name])) for name in names]
    later = list(itertools.chain.from_iterable(zip(*shuffled, strict=False)))
    return tweets[:BEFORE_DRIFT] + later[: ANSWERS - BEFORE_DRIFT]


async def run_drift(corpora: Corpora, drift: str, seed: int, threshold: float, budget: Budget = DRIFT_BUDGET) -> Tally:
    """Run one stream; reviewers decide at once."""
    deployment = Deployment(seed, budget)
    for answer in stream(corpora, drift, random.Random(seed)):
        holds = answer.confidence < threshold
        await deployment.answer(deployment.new_job(), is_wrong=answer.is_wrong, holds=holds)
    return deployment.tally


async def redone_model(seed: int, number: int) -> Tally:
    """Run a model whose every answer is wrong, and whose every audited answer is sent back for another round."""
    deployment = Deployment(seed, ADVERSARY_BUDGET)
    for _ in range(number):
        job = deployment.new_job()
        for review_round in range(ROUNDS):
            if await deployment.answer(msgspec.structs.replace(job, round=review_round), is_wrong=True):
                break
    return deployment.tally


async def retrying_caller(seed: int, number: int) -> Tally:
    """Run a caller who repeats the one request that the model gets wrong: each retry is a new job."""
    deployment = Deployment(seed, ADVERSARY_BUDGET)
    for _ in range(number):
        await deployment.answer(deployment.new_job(), is_wrong=True)
    return deployment.tally


async def cancelling_caller(seed: int, number: int) -> Tally:
    """Run a caller who cancels whatever does not come at once, so that reviewers are late with every audit."""
    deployment, chance = Deployment(seed, ADVERSARY_BUDGET), random.Random(seed)
    for _ in range(number):
        await deployment.answer(deployment.new_job(), is_wrong=chance.random() < 0.5, decides=False)
    return deployment.tally


async def replaying_caller(seed: int, number: int) -> Tally:
    """Run a caller who replays what came, cancels what did not, and retries everything, in any order.

    A replay with the same idempotency key is answered with the stored answer, and is no new delivery; a cancelled audit
    stays open until its reviewer comes to it; each retry is a new job.
    """
    deployment, chance = Deployment(seed, ADVERSARY_BUDGET), random.Random(seed)
    for _ in range(number):
        job, is_late = deployment.new_job(), chance.random() < 0.5
        has_left = await deployment.answer(job, is_wrong=chance.random() < 0.7, decides=not is_late)
        if has_left:
            deployment.replay(job)
        elif deployment.open_audits and chance.random() < 0.2:
            late = deployment.open_audits[0]
            deployment.decide(late, is_wrong=deployment.is_wrong[late.id])
    return deployment.tally


async def sharing_callers(seed: int, number: int) -> Tally:
    """Run callers who all ask the same few questions, so that each answer in the cache would go to many of them."""
    deployment, chance = Deployment(seed, ADVERSARY_BUDGET), random.Random(seed)
    wrong = [chance.random() < 0.5 for _ in range(QUESTIONS)]
    for _ in range(number):
        question = chance.randrange(QUESTIONS)
        job = msgspec.structs.replace(deployment.new_job(), cache="miss", cache_key=f"question-{question}")
        await deployment.answer(job, is_wrong=wrong[question])
    return deployment.tally


async def two_processes(seed: int, number: int) -> Tally:
    """Run two processes that answer at once, with a model of which half the answers are wrong."""
    deployment, chance = Deployment(seed, ADVERSARY_BUDGET, processes=2), random.Random(seed)
    await _at_once(deployment.answer(deployment.new_job(), is_wrong=chance.random() < 0.5) for _ in range(number))
    return deployment.tally


async def _at_once(calls: Iterator[Coroutine[Any, Any, Any]]) -> None:
    """Make calls, as many at once as there are callers."""

    async def make_calls() -> None:
        for call in calls:
            await call

    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(make_calls())


async def two_processes_with_teams(seed: int, number: int) -> dict[str, Tally]:
    """Run two processes whose callers choose the team that each request counts for; return the tally of each team.

    A third of the requests name a team that no request has named before. The model is wrong as often as it can be with
    the first team, in half of the answers of the second, and always with the others.
    """
    budget, chance = msgspec.structs.replace(ADVERSARY_BUDGET, per="metadata.team"), random.Random(seed)
    deployment, tallies = Deployment(seed, budget, processes=2), dict[str, Tally]()

    async def call(team: str) -> None:
        period = deployment.present("first")
        share = {"first": float(period is None or period.passes > 0), "second": 0.5}.get(team, 1.0)
        tally = tallies.setdefault(team, Tally())
        await deployment.answer(deployment.new_job(team), is_wrong=chance.random() < share, tally=tally)

    await _at_once(call(chance.choice(("first", "second", f"new-{count}"))) for count in range(number))
    return tallies


async def stopping_model(seed: int, number: int) -> Tally:
    """Run a model that is wrong just as often as it can be: it stops once the gate has closed."""
    deployment = Deployment(seed, ADVERSARY_BUDGET)
    for _ in range(number):
        period = deployment.tables.budget_periods.get("p")
        is_closed = period is not None and period[-1].passes == 0
        await deployment.answer(deployment.new_job(), is_wrong=not is_closed)
    return deployment.tally


ADVERSARIES = {
    "redone model": redone_model,
    "retrying caller": retrying_caller,
    "cancelling caller": cancelling_caller,
    "replaying caller": replaying_caller,
    "sharing callers": sharing_callers,
    "two processes": two_processes,
    "stopping model": stopping_model,
}
