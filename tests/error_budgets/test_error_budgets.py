"""A short form of the simulation: budgets hold while the texts drift, and against who works against them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from error_budgets import processes
from error_budgets.corpus import Answer, read_answers
from error_budgets.processes import PASS, Deployment, Tally
from error_budgets.runs import (
    ADVERSARIES,
    ADVERSARY_ANSWERS,
    ADVERSARY_BUDGET,
    is_broken,
    run_drift,
    stream,
    threshold_of,
    two_processes_with_teams,
)
from signoff.core.job import Decision, Job
from signoff.core.reviews.budget_period import BudgetPeriod, check_terms, terms_of
from signoff.core.reviews.rules import Budget
from signoff.runtime.passes import Passes
from signoff.work.reviews.budget import apply_budget
from support.stores import ANSWER, AStore, a_step, inserted, opened

pytestmark = pytest.mark.anyio
RUNS = 20
TEXTS = 1_500
BUDGET = Budget(answers=3_000, share=0.05, audit_rate=0.1)


@pytest.fixture(scope="module")
def corpora() -> dict[str, list[Answer]]:
    return {name: list(read_answers(name, TEXTS)) for name in ("tweets", "products")}


def test_a_corpus_has_the_texts_that_its_authors_describe(corpora: dict[str, list[Answer]]) -> None:
    assert {name: len(answers) for name, answers in corpora.items()} == {"tweets": TEXTS, "products": TEXTS}
    shares = {name: sum(answer.is_wrong for answer in answers) / TEXTS for name, answers in corpora.items()}
    assert 0 < shares["tweets"] < 0.15 < shares["products"] < 0.6


async def test_a_budget_holds_while_texts_drift_to_another_kind(corpora: dict[str, list[Answer]]) -> None:
    threshold, allowed = threshold_of(corpora["tweets"]), terms_of(BUDGET).allowed
    tallies = [await run_drift(corpora, "products", seed, threshold, BUDGET) for seed in range(RUNS)]
    assert not is_broken(tallies, BUDGET)
    # without the budget, most runs would be over it
    wrong = [sum(answer.is_wrong for answer in stream(corpora, "products", random.Random(seed))) for seed in range(5)]
    assert min(wrong) > allowed


async def test_most_answers_pass_while_the_model_is_as_good_as_its_budget(corpora: dict[str, list[Answer]]) -> None:
    tally = await run_drift(corpora, "tweets", 1, threshold_of(corpora["tweets"]), BUDGET)
    assert tally.delivered >= 0.78 * tally.answers


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
async def test_a_budget_holds_against(name: str) -> None:
    tallies = await tallies_of(name)
    assert not is_broken(tallies, ADVERSARY_BUDGET)
    assert min(tally.wrong_delivered for tally in tallies) > 0


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
async def test_a_gate_that_never_closes_is_detected_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BudgetPeriod, "passes", property(lambda period: period.terms.answers))
    assert is_broken(await tallies_of(name), ADVERSARY_BUDGET)


async def test_a_gate_that_ignores_open_audits_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BudgetPeriod, "detected", property(lambda period: period.wrong))
    assert is_broken(await tallies_of("cancelling caller"), ADVERSARY_BUDGET)


async def test_a_cache_that_gives_answers_which_nobody_approved_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def apply_and_cache(services: Any, job: Job, *more: Any) -> Job:
        return msgspec.structs.replace(await apply_budget(services, job, *more), cache=job.cache)

    monkeypatch.setattr(processes, "apply_budget", apply_and_cache)
    assert is_broken(await tallies_of("sharing callers"), ADVERSARY_BUDGET)


async def tallies_of(name: str) -> list[Tally]:
    """Return the tallies of the runs of an adversary."""
    return [await ADVERSARIES[name](seed, ADVERSARY_ANSWERS) for seed in range(RUNS)]


async def test_a_budget_for_each_group_holds_in_each_of_them_with_two_processes_at_once() -> None:
    runs = [await two_processes_with_teams(seed, 3 * ADVERSARY_ANSWERS) for seed in range(RUNS)]
    for team in ("first", "second"):
        tallies = [tallies[team] for tallies in runs]
        assert not is_broken(tallies, ADVERSARY_BUDGET)
        # the model keeps going until the gate closes, so the budget is what stops it
        assert min(tally.wrong_delivered for tally in tallies) > 0
        assert sum(tally.held for tally in tallies) > 0.4 * sum(tally.answers for tally in tallies)
    for tallies in runs:
        fresh = [tally for team, tally in tallies.items() if team.startswith("new-")]
        assert len(fresh) > 0.8 * ADVERSARY_ANSWERS
        # a team for each request: each has a budget, of which one answer uses one pass, or none
        assert {tally.wrong_delivered for tally in fresh} == {0, 1}


@pytest.mark.parametrize("url", ["sqlite", "memory"])
async def test_the_simulation_decides_as_a_store_that_stores_whole_jobs(url: str, tmp_path: Path) -> None:
    # given a budget that closes and opens, and answers of which a third is wrong
    budget, chance = Budget(answers=400, share=0.2, audit_rate=0.3), random.Random(7)
    check_terms(terms_of(budget))
    answers = [chance.random() < 0.35 for _ in range(150)]
    simulated = Deployment(3, budget)
    jobs = [simulated.new_job() for _ in answers]
    passed = [await simulated.answer(job, is_wrong=is_wrong) for job, is_wrong in zip(jobs, answers, strict=True)]
    # then whole jobs in a store leave, or are held, in the same order
    async with opened(f"{url}:///{tmp_path}/store.db") as store:
        services = services_of(store, simulated)
        stored = [
            await whole_job(services, simulated, job, is_wrong=is_wrong)
            for job, is_wrong in zip(jobs, answers, strict=True)
        ]
        now, period = await simulated.period(), await store.budgets.period("p")
        assert period is not None
        assert (period.delivered, period.audits, period.wrong) == (now.delivered, now.audits, now.wrong)
    assert stored == passed
    assert 0 < sum(passed) < len(passed)


def services_of(store: AStore, simulated: Deployment) -> Any:
    """Return what the budget depends on: a store, with the key of the simulation."""
    leases = itertools.count()
    passes = Passes(store.budgets, lambda: f"lease-{next(leases)}")
    adapters = simulated.processes[0].adapters
    return SimpleNamespace(store=store, adapters=adapters, runtime=SimpleNamespace(passes=passes))


async def whole_job(services: Any, simulated: Deployment, job: Job, *, is_wrong: bool) -> bool:
    """Store a job, settle it, and decide on its audit; return True if its answer left without a review."""
    store = services.store
    await inserted(store, id=job.id, lease="mine", lease_seconds=600, attempt=1)
    judged = await apply_budget(services, job, PASS, [simulated.policy])
    assert judged.ruling is not None
    verb = "succeed" if judged.ruling.outcome == "pass" else "hold"
    settled = await store.jobs.transition(job.id, a_step(verb, changes={"response": ANSWER, "ruling": judged.ruling}))
    if settled.status == "human" and judged.ruling.coin is not None:
        decision = Decision(verdict="reject" if is_wrong else "approve", reviewer="ann")
        at_once = {"changes": {"decision": decision}, "after_seconds": {"release_at": 0}, "decision": decision}
        await store.jobs.transition(job.id, a_step("decide", **at_once), a_step(decision.verdict))
    return settled.status == "success"
